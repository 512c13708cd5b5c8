"""Results made elsewhere: refused line by line, and kept apart from ours."""

import json

import pandas as pd
import pytest

from salun_core.__main__ import main
from salun_core.errors import UserError
from salun_core.pages import contributed
from salun_core.pages.contributed import add, checked, contributed_rows, contributed_table
from salun_core.pages.replication import all_results

HEAD = "dataset,arch,scenario,method,seed,UA,RA,TA,MIA,settings,contributor,code"
ROWS = [
    "CIFAR-10,ResNet-18,random 10%,retrain,1,0.05,1.0,0.94,0.13,,A. Person,https://example.org/x@1",
    'CIFAR-10,ResNet-18,random 10%,salun,1,0.03,0.99,0.93,0.15,"{""lr"": 0.01}",A. Person,https://example.org/x@1',
    "CIFAR-10,ResNet-18,random 10%,Mine,1,0.04,0.98,0.92,0.11,,A. Person,https://example.org/x@1",
]


def written(folder, rows=ROWS, head=HEAD, name="theirs.csv"):
    path = folder / name
    path.write_text("\n".join([head, *rows]) + "\n", "utf8")
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(contributed, "contributed_folder", lambda: tmp_path / "contributed")
    return tmp_path


def test_a_file_is_added_and_shown_with_gaps_to_its_own_retrained_models(folder, capsys):
    assert main(["add", str(written(folder)), "--check"]) == 0
    assert not (folder / "contributed").exists()
    assert main(["add", str(written(folder))]) == 0
    assert "3 rows in" in capsys.readouterr().out
    rows = contributed_rows()
    gap = dict(zip(rows["method"], rows["gap"], strict=True))
    assert gap["salun"] == pytest.approx((0.02 + 0.01 + 0.01 + 0.02) / 4) and gap["retrain"] == 0
    table = contributed_table()
    assert table.caption.startswith("Contributed") and table.frame["Method"].tolist() == [
        "Retrain",
        "SalUn",
        "Mine",
    ]
    assert table.frame["Avg. Gap"].tolist() == ["0.00", "1.50", "1.75"]


def test_no_module_that_a_file_names_is_imported(folder, monkeypatch):
    (folder / "named_by_a_file.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(folder))
    asked = []
    monkeypatch.setattr("salun_core.plugins.importlib.import_module", asked.append)
    add(written(folder, [ROWS[0], ROWS[2].replace("Mine", "named_by_a_file:METHOD")]))
    assert contributed_table().frame["Method"].tolist() == ["Retrain", "named_by_a_file:METHOD"]
    all_results.shown(all_results.every_cell(folder))
    assert asked == []


def test_masks_of_several_densities_are_told_apart(folder):
    head = HEAD.replace("seed", "mask,keep,seed")
    rows = [row.replace(",1,0", f",salient,{keep},1,0", 1) for row in ROWS[1:] for keep in (0.5, 0.3)][:3]
    add(written(folder, rows, head))
    assert contributed_table().frame["Method"].tolist() == ["SalUn, 50%", "SalUn, 30%", "Mine + salient mask"]


def test_the_explorer_names_them_and_nothing_else_of_the_book_reads_them(folder, monkeypatch):
    monkeypatch.setattr(all_results, "all_runs", lambda out_dir: [])
    before = all_results.every_cell()
    add(written(folder))
    cells = all_results.every_cell()
    mine = cells[cells["source"] == "contributed"]
    assert len(mine) == 3 and set(mine["run"]) == {"theirs"} and len(cells) == len(before) + 3
    assert all_results.shown(cells)["source"].tolist()[-1] == "contributed"
    pd.testing.assert_frame_equal(
        cells[cells["source"] != "contributed"].reset_index(drop=True), before, check_dtype=False
    )


def test_without_any_the_table_says_so_and_a_file_without_retrain_has_no_gaps(folder):
    assert "Nobody" in str(contributed_table())
    add(written(folder, ROWS[1:]))
    assert "gap" not in contributed_rows() and "Avg. Gap" not in contributed_table().frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("dataset,", "data,"), "unknown column 'data': did you mean 'dataset'"),
        (
            lambda t: t.replace("0.05,1.0", "5.24,1.0"),
            "line 2: UA: .* got '5.24': write a fraction and not percent",
        ),
        (lambda t: t.replace("salun,1,", "salun,one,"), "line 3: seed: .* got 'one'"),
        (lambda t: t.replace("0.05,1.0", "0_1,1.0"), "line 2: UA: write the number without _, got '0_1'"),
        (
            lambda t: t.replace("salun,1,", "salun,1_0,"),
            "line 3: seed: write the number without _, got '1_0'",
        ),
        (lambda t: t.replace("salun,1,", "salun,,"), "line 3: seed: field required: of this row"),
        (
            lambda t: t.replace("Mine,1", "salun,1"),
            "salun on CIFAR-10, random 10%, seed 1 appears twice",
        ),
        (lambda t: t.replace('"{""lr"": 0.01}"', "lr=1"), "line 3: settings are not valid JSON"),
        (lambda t: t.replace('"{""lr"": 0.01}"', "3"), "line 3: settings are not a mapping"),
        (lambda t: t.replace("0.01}", "NaN}"), "line 3: settings are not valid JSON .NaN is not JSON"),
        (lambda t: t.replace("0.01}", "[" * 90_000), "line 3: settings are not valid JSON"),
        (lambda t: t.replace("Mine", "x" * 200_000), "line 4: field larger than"),
        (lambda t: t.replace("arch,", "dataset,"), "column 'dataset' appears twice"),
        (lambda t: t.replace("Mine,1", "Mine," + "9" * 30), "line 4: seed: .* got '9+'"),
        (lambda t: t.replace(",0.13,,A", ",nan,,A"), "line 2: MIA: .* finite"),
        (lambda t: t.replace("Mine,1,0.04", "Mine,1"), "line 4: its number of fields differs"),
        (
            lambda t: t.replace(",Mine,", ",=cmd|' /C calc'!A0,"),
            "line 4: method: a spreadsheet takes .*calc.* for a formula: begin with a word",
        ),
        (lambda t: t.splitlines()[0] + "\n", "holds no rows"),
        (lambda t: t.replace(",", ";"), "separate the columns by commas"),
        (lambda t: t.replace("Mine", "Mi\x00ne"), "line 4: method"),
        (lambda t: t.replace("Mine", "Mi\u202ene"), "line 4: method"),
        (
            lambda t: t.replace("retrain", "Retrain"),
            "line 2: method 'Retrain' is one of ours: write 'retrain'",
        ),
    ],
)
def test_what_is_wrong_is_named_by_line(folder, capsys, change, message):
    path = written(folder)
    path.write_text(change(path.read_text("utf8")), "utf8")
    with pytest.raises(UserError, match=message):
        checked(path)
    assert main(["add", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (folder / "contributed").exists()


def test_a_folder_in_place_of_a_file_is_named_as_such(folder, capsys):
    assert main(["add", str(folder)]) == 2
    assert f"{folder} is a folder: give a CSV file" in capsys.readouterr().err


def test_a_contribution_is_not_replaced_in_silence(folder):
    add(written(folder))
    add(written(folder))  # the same again is no change
    with pytest.raises(UserError, match="already exists with other rows"):
        add(written(folder, ROWS[:2]))


def test_the_schema_names_every_column(capsys):
    assert main(["add", "--schema"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["properties"]) == set(contributed.COLUMNS)
    assert {"dataset", "method", "seed", "UA", "contributor", "code"} <= set(found["required"])
    assert main(["add"]) == 2
