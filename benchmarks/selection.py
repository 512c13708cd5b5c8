"""Choosing the salient half: counting passes against two sorts of the whole vector."""

import torch
from torch import Tensor

from benchmarks.measure import Row, in_turn, peaks
from salun_core.saliency import Mask, Scores, top_mask


def prepared(size: int) -> Scores:
    """Scores of a network with ``size`` weights in layers of up to four million."""
    rng = torch.Generator().manual_seed(0)
    scores = {}
    for index, start in enumerate(range(0, size, 1 << 22)):
        scores[str(index)] = torch.rand(min(1 << 22, size - start), generator=rng)
    return scores


def counted(scores: Scores) -> Mask:
    """Ours."""
    return top_mask(scores, keep=0.5)


def sorted_twice(scores: Scores) -> Tensor:
    """The rank of every entry by an argsort of an argsort of all scores."""
    flat = torch.cat(list(scores.values()))
    ranks = torch.argsort(torch.argsort(flat, descending=True))
    return ranks < round(0.5 * len(flat))


def run(*, small: bool) -> list[Row]:
    """Time and peak memory, at the size of ResNet-18 and at nine times that."""
    rows = []
    for size in (100_000,) if small else (11_000_000, 100_000_000):
        scores = prepared(size)
        differing = int((torch.cat(list(counted(scores).values())) ^ sorted_twice(scores)).sum())
        note = f"masks differ in {differing} ties" if differing else "same mask"
        ours, plain = in_turn(lambda s=scores: counted(s), lambda s=scores: sorted_twice(s), repeats=3)  # type: ignore[misc]
        rows.append(Row(f"{size:,} weights, time", ours, plain, note=note))
        ours, plain = peaks(__name__, ("counted", "sorted_twice"), size)
        rows.append(Row(f"{size:,} weights, peak memory", ours, plain, unit="MiB"))
    return rows
