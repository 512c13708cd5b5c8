"""Metrics of stored outputs: computed once for each state of their code, and for each state of the outputs."""

import contextlib

import pytest

from salun_core.errors import UserError
from salun_core.experiments.classification.method_comparison import ClassificationParams
from salun_core.experiments.runs import table as module
from salun_core.experiments.runs.cells import Cell, Scenario
from salun_core.experiments.runs.lab import Lab
from salun_core.experiments.runs.store import Key, Store
from salun_core.experiments.runs.table import Measured, Run, Table, read_table
from salun_core.metrics import Kind

CALLS = []


def load(path):
    return float(path.read_text())


def doubled(outputs):
    CALLS.append(outputs)
    return 2 * outputs


@pytest.fixture
def stored(tmp_path, monkeypatch):
    CALLS.clear()
    monkeypatch.setitem(module.KINDS, "toy", Kind(load, {"X": doubled}, {"Y": doubled}))
    monkeypatch.setattr(module, "function_digest", lambda _: "one")
    store = Store(tmp_path / "cells")

    def put(value):
        key = Key("cell", {"seed": 1})
        store.path(key).unlink(missing_ok=True)
        return store.put(key, {"about": {"kind": "toy"}}, {}, {".outputs.txt": str(value).encode()})

    return put, store, tmp_path


def test_a_metric_is_computed_once_and_kept_across_processes(stored):
    put, store, folder = stored
    result = put(3)
    for _ in range(2):
        measured = Measured(folder / "measured")  # as another process would start
        assert measured.of(store.folder, result, reported=True) == {"X": 6.0}
        measured.keep()
    assert CALLS == [3.0]


def test_other_outputs_and_other_code_are_measured_anew(stored, monkeypatch):
    put, store, folder = stored
    measured = Measured(folder / "measured")
    measured.of(store.folder, put(3), reported=True)
    measured.keep()
    assert measured.of(store.folder, put(4), reported=True) == {"X": 8.0}
    measured.keep()
    monkeypatch.setattr(module, "function_digest", lambda _: "two")
    assert Measured(folder / "measured").of(store.folder, put(4), reported=True) == {"X": 8.0}
    assert CALLS == [3.0, 4.0, 4.0]


def test_values_of_code_that_is_gone_are_deleted(stored, monkeypatch):
    put, store, folder = stored
    for digest in ("one", "two"):
        monkeypatch.setattr(module, "function_digest", lambda _, digest=digest: digest)
        measured = Measured(folder / "measured")
        measured.of(store.folder, put(3), reported=True)
        measured.keep()
    assert [path.name for path in (folder / "measured").iterdir()] == ["X-two.json"]


def test_a_cell_that_only_takes_part_in_a_choice_has_no_reported_metric(stored):
    put, store, folder = stored
    assert Measured(folder).of(store.folder, put(3), reported=False) == {"select_Y": 6.0}


def test_a_cell_without_outputs_has_no_values(stored):
    _, store, folder = stored
    result = store.put(Key("cell", {"seed": 2}), {"about": {"kind": "toy"}}, {})
    assert Measured(folder).of(store.folder, result, reported=True) == {"X": None}


def test_kept_values_that_are_damaged_are_computed_again(stored):
    put, store, folder = stored
    measured = Measured(folder / "measured")
    measured.of(store.folder, put(3), reported=True)
    measured.keep()
    (folder / "measured/X-one.json").write_text("{")
    assert Measured(folder / "measured").of(store.folder, put(3), reported=True) == {"X": 6.0}


@pytest.mark.parametrize(
    "text", ['{"cell-x": 3}', '{"cell": [1]}', "[1]", '{"a": NaN}', "[" * 10**5, "1" * 5000, '"\\ud800"']
)
def test_kept_values_of_any_other_form_are_computed_again(stored, text):
    put, store, folder = stored
    result = put(3)
    (folder / "measured").mkdir()
    (folder / "measured/X-one.json").write_text(text.replace("cell-x", result.key.name))
    assert Measured(folder / "measured").of(store.folder, result, reported=True) == {"X": 6.0}


def test_a_kept_value_that_was_edited_is_computed_again(stored):
    put, store, folder = stored
    measured = Measured(folder / "measured")
    measured.of(store.folder, put(3), reported=True)
    measured.keep()
    file = folder / "measured/X-one.json"
    file.write_text(file.read_text().replace("6.0", "7.0"))
    assert Measured(folder / "measured").of(store.folder, put(3), reported=True) == {"X": 6.0}


def test_the_kept_values_of_another_metric_are_not_taken(stored, monkeypatch):
    put, store, folder = stored
    result = put(3)
    halved = Kind(load, {"X": doubled, "Y": lambda outputs: outputs / 2}, {})
    monkeypatch.setitem(module.KINDS, "toy", halved)
    measured = Measured(folder / "measured")
    first = measured.of(store.folder, result, reported=True)
    measured.keep()
    (folder / "measured/X-one.json").write_text((folder / "measured/Y-one.json").read_text())
    assert (
        Measured(folder / "measured").of(store.folder, result, reported=True) == first == {"X": 6.0, "Y": 1.5}
    )


def test_outputs_that_are_not_those_of_the_cell_are_not_measured(stored):
    put, store, folder = stored
    result = put(3)
    (store.folder / result.outputs).write_text("4")
    with pytest.raises(UserError, match=r"outputs.txt is missing or is not"):
        Measured(folder / "measured").of(store.folder, result, reported=True)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "null",
        '{"params": {}, "rows": [1]}',
        '{"params": {}, "rows": [{"cell": 1, "reported": true}]}',
        '{"params": {}, "rows": [{"cell": "../../x", "reported": true}]}',
        '{"params": [], "rows": []}',
        '{"params": {}, "rows": []}',
        '{"params": {"a": NaN}, "rows": []}',
        "[" * 10**5,
        "9" * 5000,
    ],
)
def test_a_list_of_cells_of_another_form_is_said_to_be_damaged(tmp_path, text):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/classification.json").write_text(text)
    with pytest.raises(UserError, match="damaged"):
        read_table(tmp_path, "classification")


def test_a_whole_cell_of_another_form_is_named(stored):
    _, store, folder = stored
    result = store.put(Key("cell", {"seed": 1}), {"about": {"kind": "toy"}}, {})
    with pytest.raises(UserError, match=f"{result.key.name}.*delete it"):
        Table(folder, "classification", {}).rows([{"cell": result.key.name, "reported": True}])


def test_the_kept_values_of_a_metric_are_read_once_for_all_rows(stored, monkeypatch):
    put, store, folder = stored
    reads = []
    read = module._read_measured
    monkeypatch.setattr(module, "_read_measured", lambda path: reads.append(path) or read(path))
    measured = Measured(folder / "measured")
    for _ in range(5):
        measured.of(store.folder, put(3), reported=True)
    assert len(reads) == 1


def test_what_another_process_is_computing_comes_last_and_keeps_its_row(tmp_path, monkeypatch):
    store, order = Store(tmp_path / "cells"), []
    cells = [Cell(seed, Scenario("class", target=0), "ga") for seed in range(3)]

    class Toy(Lab):
        def key(self, cell):
            return Key("cell", {"seed": cell.seed})

        def computed(self, cell, key):
            order.append(cell.seed)
            if cell.seed == 2:
                other.close()  # by now the other process has ended
            return store.put(key, {"about": {"kind": "classification"}, "status": "diverged"}, {})

    lab = Toy()
    lab.store = store
    other = contextlib.ExitStack()
    other.enter_context(Store(store.folder).alone(lab.key(cells[0])))
    run = Run(lab, ClassificationParams.load({"out_dir": str(tmp_path)}))
    monkeypatch.setattr(run.table, "rows", lambda entries: entries)
    run.execute(cells)
    assert order == [1, 2, 0]
    assert [entry["cell"] for entry in run.entries] == [lab.key(cell).name for cell in cells]
