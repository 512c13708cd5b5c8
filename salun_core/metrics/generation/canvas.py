"""Retention in the domain of what is forgotten and across domains, as UnlearnCanvas measures it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from salun_core.errors import UserError, one_of
from salun_core.metrics.generation.outputs import GeneratedOutputs
from salun_core.metrics.share import Share, wilson

CLASS, STYLE = "object", "style"
"""The domains of an experiment in which a class is forgotten."""


@dataclass(frozen=True)
class Retention:
    """What became of the forgotten concept and of the others.

    Parameters
    ----------
    unlearned : Share
        UA: of the images that involve a forgotten concept, those in which no forgotten one is recognised.
    in_domain : Share
        IRA: of all others, those recognised as asked for in the same domain; higher is better.
    cross_domain : Share
        CRA: the same in the other domains, every image counting once for each; higher is better.
    """

    unlearned: Share
    in_domain: Share
    cross_domain: Share

    def columns(self) -> dict[str, float]:
        """The three shares by their names in tables."""
        return {"UA": self.unlearned.value, "IRA": self.in_domain.value, "CRA": self.cross_domain.value}


def retention(
    asked: Mapping[str, Sequence[int] | Tensor],
    seen: Mapping[str, Sequence[int] | Tensor],
    *,
    domain: str,
    forgotten: int | Sequence[int],
) -> Retention:
    """Compare what images were asked for with what classifiers see in them, by domain.

    Parameters
    ----------
    asked : mapping of str to sequence of int
        The concept of each image in each domain, such as ``{"style": [...], "object": [...]}``, (N,) each;
        `data.prompts.crossed_prompts` gives prompts for all combinations.
    seen : mapping of str to sequence of int
        The concept that the classifier of each domain recognises (`recognised`).
    domain : str
        The one in which something is forgotten.
    forgotten : int or sequence of int
        What is forgotten in it.

    Raises
    ------
    UserError
        If domains or counts do not fit, or there is only one domain.

    References
    ----------
    Zhang et al., UnlearnCanvas, NeurIPS 2024 datasets and benchmarks, arXiv:2402.11846.
    """
    one_of(domain, asked, "domain")
    if asked.keys() != seen.keys():
        raise UserError(
            f"images were asked for by {', '.join(asked)} and recognised by {', '.join(seen)}: give the same domains"
        )
    if len(asked) < 2:
        raise UserError(f"{domain} is the only domain: retention across domains needs another one")
    wanted, found = (
        {name: torch.as_tensor(values, dtype=torch.int64) for name, values in each.items()}
        for each in (asked, seen)
    )
    n = len(wanted[domain])
    for name in wanted:
        if len(wanted[name]) != n or len(found[name]) != n:
            raise UserError(
                f"{n} images came with {len(wanted[name])} concepts asked for and {len(found[name])} recognised "
                f"in the domain {name}: give one each"
            )
    gone = torch.tensor([forgotten] if isinstance(forgotten, int) else list(forgotten))
    involved = torch.isin(wanted[domain], gone)
    still_there = torch.isin(found[domain], gone)
    right = {name: found[name] == wanted[name] for name in wanted}
    others = [right[name][~involved] for name in wanted if name != domain]
    return Retention(
        wilson(int((involved & ~still_there).sum()), n=int(involved.sum())),
        wilson(int(right[domain][~involved].sum()), n=int((~involved).sum())),
        wilson(int(torch.cat(others).sum()), n=sum(len(each) for each in others)),
    )


def crossed_share(outputs: GeneratedOutputs, *, name: str) -> Share | None:
    """One share of `Retention`, of images of classes in styles; None where none were drawn."""
    if "crossed_asked" not in outputs.extra:
        return None
    asked, seen = (
        dict(zip((CLASS, STYLE), outputs.extra[f"crossed_{side}"], strict=True)) for side in ("asked", "seen")
    )
    share: Share = getattr(retention(asked, seen, domain=CLASS, forgotten=outputs.forgotten), name)
    return share
