"""Tables of generative models agree with the rows behind them."""

import generated_frames
import pandas as pd

from salun_core.pages.tables.generation import generation_table

CELLS = generated_frames.cells()


def test_one_run_has_intervals_and_several_have_a_spread():
    one = generation_table(CELLS).frame.set_index("Method")
    assert one.loc["SalUn", "UA"] == "100.00\n(72–100)"  # Wilson, 10 of 10
    assert one.loc["SalUn", "Mask (s)"] == "0.5"
    twice = pd.concat([CELLS, CELLS.assign(seed=1, UA=CELLS["UA"] / 2)])
    assert generation_table(twice).frame.set_index("Method").loc["SalUn", "UA"] == "75.00 ± 35.36"


def test_runs_that_diverged_are_named():
    lost = pd.concat([CELLS, CELLS[CELLS["method"] == "ga"].assign(status="diverged", seed=1)])
    assert "1 diverged, excluded from all means: GA" in generation_table(lost).caption
    assert "diverged" not in generation_table(CELLS).caption
