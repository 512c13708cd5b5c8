"""The main tables of an experiment for a paper, as LaTeX."""

import pandas as pd

from salun_core.experiments.runs.table import asked_for
from salun_core.pages.tables.classification import main_table
from salun_core.pages.tables.generation import generation_table


def as_latex(cells: pd.DataFrame) -> str:
    """The main table of each scenario: value, gap in brackets, best bold, in the layout of the paper.

    Parameters
    ----------
    cells : DataFrame
        Results table of one experiment; cells that served the choice of settings are left out. Metrics of other
        packages in it are further columns, in their own unit.
    """
    more = asked_for(cells)
    reported = cells[cells["reported"]]
    main = reported[reported["study"] == reported["study"].iloc[0]] if "study" in reported else reported
    if main["kind"].iloc[0] != "classification":
        tables = [generation_table(main, more)]
    else:
        tables = [main_table(main, scenario, more=more) for scenario in dict.fromkeys(main["scenario"])]
    return "\n".join(["% needs \\usepackage{booktabs}", *(table.to_latex() for table in tables)])
