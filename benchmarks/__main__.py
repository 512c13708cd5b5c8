"""``python -m benchmarks [NAME ...] [--small]``: print ratios, faster than the plain way where above 1."""

import argparse
import platform
import sys
from collections.abc import Callable, Sequence

import pandas as pd
import torch

from benchmarks import attack, book, diffusion, epoch, large_folder, masking, scaling, selection
from benchmarks.measure import Row
from salun_core.errors import UserError, one_of
from salun_core.experiments.runs.provenance import device_name

BENCHMARKS: dict[str, Callable[..., list[Row]]] = {
    "selection": selection.run,
    "epoch": epoch.run,
    "masking": masking.run,
    "attack": attack.run,
    "diffusion": diffusion.run,
    "scaling": scaling.run,
    "large_folder": large_folder.run,
    "book": book.run,
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--small", action="store_true", help="seconds instead of minutes; the ratios say little"
    )
    given = parser.parse_args(words)
    try:
        names = [one_of(name, BENCHMARKS, "benchmark") for name in given.names] or list(BENCHMARKS)
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    print(f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads, {versions}")
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
    for name in names:
        print(f"\n{name}: measuring", file=sys.stderr, flush=True)
        frame = pd.DataFrame([row.shown() for row in BENCHMARKS[name](small=given.small)])
        print(f"\n{name}\n{frame.to_string(index=False)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
