"""UA, RA, TA and MIA of any classifier on any loaders, with their gaps to a reference."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from salun_core.errors import UserError
from salun_core.metrics.classification import accuracy
from salun_core.metrics.classification import outputs as stored
from salun_core.metrics.classification.mia import mia
from salun_core.metrics.gaps import AVERAGE
from salun_core.metrics.share import Share
from salun_core.models.classification.scores import data_for
from salun_core.networks import check_whole

REPORTED = {
    "UA": accuracy.unlearning_accuracy,
    "RA": accuracy.retain_accuracy,
    "TA": accuracy.test_accuracy,
    "MIA": mia,
}


@dataclass(frozen=True)
class Report:
    """What `evaluate` measured; prints as a table.

    Parameters
    ----------
    shares : mapping of str to Share
        By metric: value in [0, 1], number of images, and a 95% interval for this one model.
    evaluation : Evaluation
        The logits behind them, from which any other metric can be computed.
    reference : mapping of str to Share, optional
        The same metrics of a model to compare with.
    """

    shares: Mapping[str, Share]
    evaluation: stored.Evaluation = field(repr=False)
    reference: Mapping[str, Share] | None = None

    def __getitem__(self, metric: str) -> Share:
        return self.shares[metric]

    @property
    def gaps(self) -> dict[str, float]:
        """Distance to the reference by metric, and their mean as "Avg. Gap", in [0, 1]; NaN where one is missing."""
        if self.reference is None:
            return {}
        apart = {name: abs(float(share) - float(self.reference[name])) for name, share in self.shares.items()}
        return apart | {AVERAGE: sum(apart.values()) / len(apart)}

    def to_dict(self) -> dict[str, dict[str, float | int | None]]:
        """All numbers, as JSON can hold them: by metric ``value, low, high, n`` and, with a reference, ``gap``."""
        found: dict[str, dict[str, float | int | None]] = {
            name: {"value": s.value, "low": s.low, "high": s.high, "n": s.n}
            for name, s in self.shares.items()
        }
        for name, gap in self.gaps.items():
            found.setdefault(name, {})["gap"] = gap
        return {
            name: {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()}
            for name, row in found.items()
        }

    def __str__(self) -> str:
        rows = [["", "value", "95% interval", "n"]]
        for name, share in self.shares.items():
            interval = f"[{_percent(share.low)}, {_percent(share.high)}]" if share.n else "–"
            rows.append([name, _percent(share.value), interval, f"{share.n:,}"])
        if self.reference is not None:
            rows[0] += ["reference", "gap"]
            for row in rows[1:]:
                row += [_percent(float(self.reference[row[0]])), _percent(self.gaps[row[0]])]
            rows.append([AVERAGE, "", "", "", "", _percent(self.gaps[AVERAGE])])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        ]
        if not self.shares["TA"].n:
            lines.append("TA and MIA need test images: give test=")
        return "\n".join(line.rstrip() for line in lines)


def evaluate(
    model: nn.Module,
    *,
    forget: Any,
    retain: Any,
    test: Any = None,
    reference: "nn.Module | Report | None" = None,
) -> Report:
    """Measure a classifier on the images it was to forget, those it was to keep, and images it never saw.

    Parameters
    ----------
    model : nn.Module
        As for `classification_task`; left in the mode it is in.
    forget, retain, test : iterable
        As for `classification_task`, read once each and not kept; the logits are. Give them without augmentation.
        When a whole class is forgotten, leave it out of ``test``, as the paper does.
    reference : nn.Module or Report, optional
        A model retrained without the forget set, or its report; the gaps are to it.

    Returns
    -------
    Report
        UA, RA, TA and MIA, each best near that of a retrained model.

    Raises
    ------
    UserError
        If model and loaders do not fit together, a loader holds no images, or the model's answers are not finite.

    References
    ----------
    Fan et al., SalUn, ICLR 2024 (metrics). Wilson, JASA 22 (1927) 209-212 (intervals).
    """
    given = {"forget": forget, "retain": retain} | ({"test": test} if test is not None else {})
    if not (reference is None or isinstance(reference, nn.Module | Report)):
        raise UserError(f"reference is a {type(reference).__name__}: give a retrained model, or its report")
    evaluation = _outputs(model, given)
    shares = {name: metric(evaluation) for name, metric in REPORTED.items()}
    if isinstance(reference, nn.Module):
        reference = evaluate(reference, **given)
    return Report(shares, evaluation, None if reference is None else reference.shares)


def _outputs(model: nn.Module, given: Mapping[str, Any]) -> stored.Evaluation:
    check_whole(model)
    parts, _ = data_for(model, given)
    for role, part in parts.items():
        if part.empty:
            raise UserError(f"the {role} set holds no images: give a loader with at least one batch")
    return stored.evaluate(model, parts)


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.1f}%"
