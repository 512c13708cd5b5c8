"""A user's texts in CSV and Markdown."""

import csv
import io
import json
import re

import pandas as pd
import pytest

from salun_core.escaping import csv_text, markdown_text, terminal_text
from salun_core.experiments.runs.table import printed

FORMULAE = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-1+2",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1",
    '=HYPERLINK("x";"y"),a',
]
PLAIN = [
    "cat",
    "a\r=1",
    "a\r\nb\n",
    "'tis",
    "''",
    "'=x",
    "''=x",
    "NA",
    "None",
    "nan",
    "1",
    "a=b",
    'say "x", y',
]


def fields(text):
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.mark.parametrize("text", FORMULAE)
def test_a_spreadsheet_sees_no_formula(text):
    heading, row = fields(csv_text(pd.DataFrame({text: [text]})))
    assert heading == row == [f"'{text}"]


def test_numbers_stay_numbers():
    frame = pd.DataFrame(
        {"UA": [-0.5, float("nan")], "seed": [-1, 2], "gap": pd.Series([-0.1, "x"], dtype=object)}
    )
    assert csv_text(frame).splitlines() == ["UA,seed,gap", "-0.5,-1,-0.1", ",2,x"]


def test_pandas_reads_back_what_was_written(tmp_path):
    """The way that the docstring and the book give."""
    frame = pd.DataFrame({"class": FORMULAE + PLAIN})
    frame["UA"] = [i / 7 - 1 for i in range(len(frame))]
    frame.loc[3, "UA"] = float("nan")
    path = tmp_path / "results.csv"
    path.write_bytes(csv_text(frame).encode())
    ((code, pattern),) = re.findall(r"``(read_csv.*?replace)\(r\"(.*?)\"", csv_text.__doc__)
    assert code == 'read_csv(path, keep_default_na=False, na_values=[""]).replace'
    read = pd.read_csv(path, keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(read.replace(pattern, r"\1", regex=True), frame)


def test_the_command_line_prints_no_formula():
    rows = pd.DataFrame({"scenario": ["=1+1"], "settings": [{"lr": -1}], "UA": [-0.25]})
    assert fields(printed(rows, "csv"))[1] == ["'=1+1", '{"lr": -1}', "-0.25"]


def test_plain_words_stay_readable():
    said = "SalUn is 1.25 points nearer (95% interval, n = 3): see A, B and C."
    assert markdown_text(said) == said


def test_a_terminal_obeys_no_character_of_a_name():
    name = "cat\x1b[2J\x9b31m\r\u202egod\u2028\x7f"
    said = terminal_text(f"a\tb\n{name}\n")
    assert said == "a\tb\ncat\\u001b[2J\\u009b31m\\u000d\\u202egod\\u2028\\u007f\n"
    assert json.loads(terminal_text(json.dumps(name, ensure_ascii=False))) == name
    assert terminal_text("é ℓ1 ≥ 猫 👩‍🔬") == "é ℓ1 ≥ 猫 👩‍🔬"
