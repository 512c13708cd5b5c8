"""The whole book as one PDF: one page of HTML, printed by Chromium."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import execution

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser() -> str:
    """Path of a Chromium.

    Raises
    ------
    SystemExit
        With one sentence, where there is none.
    """
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        raise SystemExit("no Chromium here: install it, or set CHROMIUM to its path")
    return found


def single_page(profile: str) -> Path:
    """Build the book of a profile as one page; its notebooks must have been executed."""
    target = execution.ROOT / execution.site(profile)
    program = Path(sys.executable).with_name("jupyter-book")
    command = [sys.executable, str(program), "build", ".", "--builder", "singlehtml", "--keep-going", "-q"]
    done = subprocess.run(
        [*command, "--path-output", str(target)],
        cwd=execution.ROOT,
        env={**os.environ, "COMPANION_RUNS": str(execution.PROFILES[profile]), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
    )
    built = target / "_build" / "singlehtml"
    if done.returncode:
        raise SystemExit(f"the single page was not built:\n{done.stdout}{done.stderr}")
    # The root page lies in a folder, and its relative links start from the top.
    return Path(shutil.copyfile(built / "book" / "index.html", built / "all.html"))


def print_pdf(page: Path, target: Path) -> Path:
    """Print a page with a browser that reaches no network."""
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-pdf-header-footer",
        "--generate-pdf-document-outline",
    ]
    options += ["--virtual-time-budget=20000", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run(
        [browser(), *options, f"--print-to-pdf={target}", page.as_uri()], capture_output=True, text=True
    )
    if done.returncode or not target.is_file():
        raise SystemExit(f"Chromium did not print {page}:\n{done.stderr}")
    return target


def main(words: list[str] | None = None) -> None:
    """Build and print the book of a profile, quick by default."""
    profile = (words or sys.argv[1:] or ["quick"])[0]
    if profile not in execution.PROFILES:
        raise SystemExit(f"unknown profile {profile!r}: choose one of {', '.join(execution.PROFILES)}")
    browser()
    target = execution.ROOT / execution.site(profile) / "_build" / "salun-companion.pdf"
    print_pdf(single_page(profile), target)
    print(f"The book as PDF: {target} ({target.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
