"""Lists and counts in sentences."""

from collections.abc import Sequence


def listed(names: Sequence[str], none: str = "none") -> str:
    """Names in a sentence: "A, B and C"."""
    if len(names) < 2:
        return names[0] if names else none
    return f"{', '.join(names[:-1])} and {names[-1]}"


def counted(n: int, one: str, several: str = "") -> str:
    """A number of things: "1 run", "2 runs"."""
    return f"{n:,} {one if n == 1 else several or f'{one}s'}"


def percent(share: float) -> str:
    """A share in percent with at least two digits."""
    return f"{100 * share:.0f}%" if share >= 0.1 else f"{100 * share:.2g}%"


def capital(text: str) -> str:
    """A text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
