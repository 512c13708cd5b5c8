"""Unlearning methods. A new one is a file with a ``METHOD`` and a line in ``METHODS``."""

from salun_core.methods.any_task import ft, ga, l1_sparse, original, retrain, rl, salun, salun_soft
from salun_core.methods.classification import be, bs, iu, neggrad_plus, scrub, ssd
from salun_core.methods.diffusion import advunlearn, ca, erasediff, esd, fmn, rece, uce
from salun_core.methods.engine import Method, Unlearned

METHODS: dict[str, Method] = {
    "original": original.METHOD,
    "retrain": retrain.METHOD,
    "ft": ft.METHOD,
    "rl": rl.METHOD,
    "ga": ga.METHOD,
    "iu": iu.METHOD,
    "be": be.METHOD,
    "bs": bs.METHOD,
    "l1_sparse": l1_sparse.METHOD,
    "neggrad_plus": neggrad_plus.METHOD,
    "scrub": scrub.METHOD,
    "ssd": ssd.METHOD,
    "esd": esd.METHOD,
    "fmn": fmn.METHOD,
    "ca": ca.METHOD,
    "uce": uce.METHOD,
    "rece": rece.METHOD,
    "advunlearn": advunlearn.METHOD,
    "erasediff": erasediff.METHOD,
    "salun": salun.METHOD,
    "salun_soft": salun_soft.METHOD,
}
"""Every method by its name in parameters, in the order of the tables."""


def methods_for(kind: str) -> tuple[str, ...]:
    """Names of the methods that work on a kind of task ("classification", "diffusion", …)."""
    return tuple(name for name, method in METHODS.items() if not method.tasks or kind in method.tasks)


def name_of(method: str, mask: str = "none") -> str:
    """A method's name in tables, with the mask where it is not its own: "FT + salient mask"."""
    label = METHODS[method].label if method in METHODS else method
    if mask == "lora":
        return f"{label} with adapters"
    own = METHODS[method].mask if method in METHODS else "none"
    return label if mask in ("none", own) else f"{label} + {mask.replace('_', ' ')} mask"


__all__ = ["METHODS", "Method", "Unlearned", "methods_for", "name_of"]
