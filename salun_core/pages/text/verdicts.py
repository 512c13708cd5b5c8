"""Sentences on the rule for claims, made from findings."""

import math

from salun_core.pages.findings.verdicts import ErrorRates
from salun_core.pages.words import listed


def error_rates(found: ErrorRates) -> str:
    """How often the rule errs, and what it takes to find an advantage."""
    needs = [
        f"{units} training seeds find an advantage of {size:g} {'floor' if size == 1 else 'floors'}"
        for units, size in found.needed.items()
        if math.isfinite(size)
    ]
    blind = [str(units) for units, size in found.needed.items() if math.isinf(size)]
    said = f"At most {100 * found.wrong:.1f}% of simulated runs contain a wrong verdict. In most runs {listed(needs)}"
    return f"{said}; {listed(blind)} find none of the simulated advantages." if blind else f"{said}."
