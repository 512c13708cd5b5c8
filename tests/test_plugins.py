"""Methods, metrics, data sets, models and scores of packages that this project knows nothing of."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from salun_core import code_digest
from salun_core.__main__ import main
from salun_core.code_digest import function_digest
from salun_core.data import DATASETS, load_dataset
from salun_core.errors import UserError, one_of
from salun_core.experiments.runs.cells import Cell, MaskSpec, Scenario
from salun_core.methods import METHODS, fitting
from salun_core.metrics import METRICS
from salun_core.models import MODELS, build_model, modules_of
from salun_core.plugins import Failed
from salun_core.saliency import SCORES

THEIRS = """
import torch
from pydantic import PositiveFloat, PositiveInt
from torch import nn

from salun_core.metrics.share import wilson
from salun_core.methods import Method
from salun_core.methods.engine import descend, rounds
from salun_core.rng import generator
from salun_core.saliency import Rule

CLASSES = 3


def descent(task, *, mask=None, steps: PositiveInt | None = 2, lr: PositiveFloat = 0.01, seed: int = 0):
    rng = generator(seed, "descent")

    def losses(model):
        for step in rounds(task, rng, order="joint", epochs=1, steps=steps):
            yield task.loss(model, step.retain, rng), step.samples

    return descend(task, losses, lr=lr, mask=mask, seed=seed)


def loose(task, *, mask=None, steps: PositiveInt | None = 2, lr: PositiveFloat = 0.01, seed: int = 0):
    return descent(task, steps=steps, lr=lr, seed=seed)


METHOD = Method(descent, "Descent", mask="salient", tasks=("classification",))
RULE = Rule(batch_means=True)
NUMBER = 3


def by_size(model, forget, loss):
    return {name: w.detach().abs() for name, w in model.named_parameters() if w.requires_grad}


def nothing(model, forget, loss):
    return {}


def missed(evaluation):
    logits, labels = evaluation.part("forget")
    return wilson(int((logits.argmin(dim=1) == labels).sum()), n=len(labels))


def odd(evaluation):
    return {"missed": 1.0}


def lost(evaluation):
    return 1 / (evaluation.size("forget") - evaluation.size("forget"))


def net(num_classes, channels):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 36, num_classes))


class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 90

    def __getitem__(self, row):
        noise = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(row))
        noise[:, 2 * (row % CLASSES) : 2 * (row % CLASSES) + 2] += 1
        return noise / 2, row % CLASSES


def squares():
    return Squares()


def raising(task, *, mask=None, seed: int = 0):
    return {}["no such key"]


def silent(task, *, mask=None, seed: int = 0):
    task.model.eval()


def clumsy(model, forget, loss):
    return 1 / 0


def unlike(model, forget, loss):
    return [1.0]


def broken():
    raise RuntimeError("no such disk")


class Measure:
    def __call__(self, evaluation):
        return 0.25


MEASURE = Measure()


def ending(task, *, mask=None, seed=0):
    raise SystemExit(0)
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A package of someone else's, named by nothing in this project; each test has it anew."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr("salun_core.paths.output_folder", lambda given: given or tmp_path / "runs")
    yield folder / "theirs.py"
    sys.modules.pop("theirs", None)
    for table in (METHODS, METRICS, DATASETS, MODELS, SCORES):
        table._loaded.clear()
        vars(table).pop("installed", None)
    code_digest.forget_files()


def log_in(said):
    """The traceback in the file that a message names."""
    return Path(re.search(r"traceback in (\S+\.log)", said)[1]).read_text()


GIVEN = {
    "dataset": "theirs:squares",
    "arch": "theirs:net",
    "methods": "[theirs:METHOD]",
    "score": "theirs:by_size",
    "recipe": "digits",
    "epochs": 1,
    "seeds": "[0]",
    "tune": False,
    "noise_floor": 0,
    "threads": 1,
    "scenario": "[random]",
}


def test_an_experiment_runs_on_names_of_another_package_and_knows_when_its_code_changes(
    theirs, tmp_path, capsys
):
    words = [str(word) for name, value in GIVEN.items() for word in ("-p", name, value)]
    out = ["--out", str(tmp_path / "runs")]
    assert main(["run", "classification", *out, *words]) == 0
    shown = ["results", "classification", *out, "--metric", "theirs:missed", "--format", "json"]
    capsys.readouterr()
    assert main(shown) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {"retrain", "theirs:METHOD"}
    mine = rows["theirs:METHOD"]
    assert (mine["score"], mine["arch"], mine["dataset"]) == ("theirs:by_size", "theirs:net", "squares")
    assert mine["theirs:missed"] == pytest.approx(1 - mine["UA"], abs=1) and mine["theirs:missed"] is not None
    assert main(["results", "classification", *out, "--metric", "theirs:missed"]) == 0
    assert "theirs:missed" in capsys.readouterr().out
    assert main(["results", "classification", *out, "--metric", "theirs:MEASURE", "--format", "latex"]) == 0
    shown_latex = capsys.readouterr().out
    assert "& theirs:MEASURE \\\\" in shown_latex and shown_latex.count("0.25") == 2
    for name in ("theirs:odd", "theirs:lost"):
        assert main(["results", "classification", *out, "--metric", name]) == 2
        said = capsys.readouterr().err
        assert f"metric {name!r} failed with " in said and "returns a Share or a number" in said
        assert "Traceback" not in said and "Traceback" in log_in(said)

    cell = tmp_path / "runs" / "cells" / f"{mine['cell']}.json"
    before = json.loads(cell.read_text())
    theirs.write_text(
        THEIRS.replace("task.loss(model, step.retain, rng)", "2 * task.loss(model, step.retain, rng)")
    )
    code_digest.forget_files()
    assert main(["run", "classification", *out, *words]) == 0
    after = json.loads(cell.read_text())
    assert after["key"] == before["key"] and after["code"] != before["code"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": "[theirs:raising, ft]"}, "method 'theirs:raising' failed with KeyError: 'no such key'"),
        (
            {"methods": "[ft, salun]", "score": "theirs:clumsy"},
            "score 'theirs:clumsy' failed with ZeroDivisionError",
        ),
        ({"methods": "[theirs:silent, ft]"}, "silent returned a NoneType"),
        (
            {"methods": "[salun, ft]", "score": "theirs:unlike"},
            "must give one value for each trainable weight",
        ),
    ],
)
def test_an_error_in_code_of_another_package_is_one_sentence_and_costs_no_other_cell(
    theirs, tmp_path, capsys, change, said
):
    words = [str(word) for name, value in (GIVEN | change).items() for word in ("-p", name, value)]
    assert main(["run", "classification", "--out", str(tmp_path / "runs"), *words]) == 2
    shown = capsys.readouterr().err
    last = shown.splitlines()[-1]
    assert said in last and "Traceback" not in shown
    assert "(1 of " in last and "Traceback" in log_in(last)
    kept = [json.loads(f.read_text())["key"].get("method") for f in (tmp_path / "runs/cells").glob("*.json")]
    assert {"ft", "retrain"} <= set(kept)


def test_each_table_takes_a_name_of_another_package(theirs):
    assert METHODS["theirs:METHOD"].label == "Descent"
    assert METHODS["theirs:descent"].defaults == {"steps": 2, "lr": 0.01}
    assert "theirs:METHOD" in METHODS and "theirs:METHODE" not in METHODS
    assert "theirs:METHOD" not in list(METHODS)  # what is only named takes part in nothing by itself
    assert load_dataset("theirs:squares", size=12).images.shape[1:] == (1, 12, 12)
    given = {"classes": 3, "channels": 1, "size": 6, "mean": [0.5], "std": [0.5]}
    assert sum(w.numel() for w in build_model("theirs:net", seed=0, **given).parameters()) == 3 * 37
    assert SCORES["theirs:RULE"].batch_means


@pytest.mark.parametrize(
    ("table", "name", "message"),
    [
        (METHODS, "theirs:METHODE", "module 'theirs' has no attribute 'METHODE'"),
        (METHODS, "their:METHOD", "No module named 'their'"),
        (METHODS, "theirs:NUMBER", "method 'theirs:NUMBER' is a int: name a callable"),
        (SCORES, "theirs:NUMBER", "saliency score 'theirs:NUMBER' is a int"),
        (METRICS, "theirs:NUMBER", "metric 'theirs:NUMBER' is a int"),
        (DATASETS, "theirs:NUMBER", "data set 'theirs:NUMBER' is a int"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(theirs, table, name, message):
    with pytest.raises(UserError) as refusal:
        one_of(name, table, table.what)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_module_that_ends_python_ends_no_run_in_silence(theirs, capsys):
    (theirs.parent / "script.py").write_text("import sys\nsys.exit(0)\n")
    assert main(["check", "--dataset", "script:digits", "--arch", "resnet6"]) == 2
    assert "it ends Python" in capsys.readouterr().err
    with pytest.raises(Failed, match="theirs:ending.*SystemExit"), METHODS.blaming("theirs:ending"):
        METHODS["theirs:ending"].run(None, seed=0)


def test_a_metric_may_be_an_object(theirs):
    before = function_digest(METRICS["theirs:MEASURE"])
    theirs.write_text(theirs.read_text().replace("0.25", "0.5"))
    code_digest.forget_files()
    assert function_digest(METRICS["theirs:MEASURE"]) != before


def test_a_method_for_another_kind_of_task_and_a_data_set_that_fails_are_refused(theirs):
    with pytest.raises(UserError, match="works on classification only, not on diffusion"):
        fitting("theirs:METHOD", "diffusion")
    with pytest.raises(UserError, match="cannot be loaded: no such disk"):
        load_dataset("theirs:broken")


def test_a_score_must_give_one_value_for_each_weight(theirs):
    from problems import trained_task

    from salun_core.saliency import saliency_mask

    task = trained_task()
    with pytest.raises(UserError, match="one value for each trainable weight"):
        saliency_mask(task.model, task.forget, task.loss, score="theirs:nothing")
    mask = saliency_mask(task.model, task.forget, task.loss, score="theirs:by_size", keep=0.1)
    size = {name: w.detach().abs() for name, w in task.model.named_parameters()}
    marked = min(float(size[n][m].min()) for n, m in mask.items() if m.any())
    assert marked >= max(float(size[n][~m].max()) for n, m in mask.items() if not m.all())


def test_entry_points_of_installed_packages_have_plain_names(theirs, capsys):
    info = theirs.parent / "theirs-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    groups = {"methods": "descent = theirs:METHOD\nrl = theirs:loose", "metrics": "missed = theirs:missed"}
    groups |= {
        "datasets": "squares = theirs:squares",
        "models": "linear = theirs:net\nbroken = theirs:missing",
        "scores": "size = theirs:by_size",
    }
    (info / "entry_points.txt").write_text(
        "".join(f"[salun_core.{group}]\n{lines}\n" for group, lines in groups.items())
    )
    importlib.invalidate_caches()
    for table in (METHODS, METRICS, DATASETS, MODELS, SCORES):
        vars(table).pop("installed", None)
    assert METHODS["descent"].label == "Descent"
    assert METHODS["rl"].module.startswith("salun_core")  # a name of this project cannot be taken
    assert fitting("descent", "classification") == "descent"
    with pytest.raises(UserError, match="did you mean 'descent'"):
        fitting("desent", "classification")
    given = {"classes": 3, "channels": 1, "size": 6, "mean": [0.5], "std": [0.5]}
    assert build_model("linear", seed=0, **given)
    with pytest.raises(UserError, match="arch 'theirs:missing' cannot be imported .*no attribute 'missing'"):
        build_model("broken", seed=0, **given)
    assert load_dataset("squares").n_train == 72
    assert METHODS.stated("descent") == METHODS.modules("descent") == ("theirs",)
    assert METHODS.modules("rl") == ()
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(
        f"installed: theirs:{name}" in shown for name in ("METHOD", "missed", "squares", "net", "by_size")
    )


def test_code_of_an_installed_package_counts_where_its_version_is_not_written_down(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "otherlib"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    code_digest.forget_files()
    before = code_digest.code_digest("salun_core.rng", "otherlib.part")
    (package / "part.py").write_text("x = 2")
    code_digest.forget_files()
    assert code_digest.code_digest("salun_core.rng", "otherlib.part") != before
    plain = code_digest.code_digest("salun_core.rng")
    assert (
        code_digest.code_digest("salun_core.rng", "torchvision.models.resnet") == plain
    )  # its version is written down
    code_digest.forget_files()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["theirs:METHOD"], 0, "ok  classification: pure, repeatable"),
        (["theirs:descent", "--kind", "classification", "-s", "lr", "0.1"], 0, "ok  classification"),
        (
            ["theirs:loose", "--kind", "classification"],
            1,
            "NO  classification: .* moved although the mask holds",
        ),
        (["theirs:METHOD", "--kind", "diffusion"], 2, "works on classification only, not on diffusion"),
        (["theirs:METHOD", "-s", "lr", "-1"], 2, "lr must be positive"),
        (["salunn"], 2, "did you mean 'salun'"),
        (
            ["theirs:raising", "--kind", "diffusion"],
            1,
            r"NO  diffusion: method 'theirs:raising' failed with KeyError.*log",
        ),
        (["theirs:silent", "--kind", "classification"], 1, "NO  classification: silent returned a NoneType"),
    ],
)
def test_the_contract_is_offered_on_the_command_line(theirs, capsys, words, status, said):
    assert main(["check-method", *words]) == status
    shown = capsys.readouterr()
    assert re.search(said, shown.out + shown.err)
    assert "Traceback" not in shown.err


def test_the_modules_behind_a_cell_are_those_of_its_method_and_of_its_score(theirs):
    own, scenario = METHODS["ft"].module, Scenario("random", fraction=0.1)
    assert Cell(0, scenario, "ft", MaskSpec("salient", 0.5)).modules == (own,)
    assert Cell(0, scenario, "ft", MaskSpec("salient", 0.5, "theirs:by_size")).modules == (own, "theirs")
    assert set(Cell(0, scenario, "theirs:METHOD").modules) == {"theirs"}


PARTS = """
import functools, importlib
from torch import nn
from salun_core.methods.any_task.ft import ft


def made(depth):
    def build(num_classes, channels):
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * 36, num_classes))
    return build


def measured(evaluation, *, part="forget"):
    return float(evaluation.size(part))


def wrapped(function):
    @functools.wraps(function)
    def inner(*args, **settings):
        return function(*args, **settings)
    return inner


class Object:
    def __init__(self, function):
        self.function = function

    def __call__(self, *args, **settings):
        return self.function(*args, **settings)
"""
STATED = """
from functools import partial
import parts
FACTOR = 1
net_partial, metric_partial = partial(parts.made(2), channels=1), partial(parts.measured, part="retain")
net_closure, metric_closure = parts.made(2), parts.wrapped(parts.measured)
net_object, metric_object = parts.Object(parts.made(2)), parts.Object(parts.measured)
net_decorated, metric_decorated = parts.wrapped(parts.made(2)), parts.wrapped(parts.Object(parts.measured).__call__)
net_imported, metric_imported = parts.made, parts.measured
ft_partial, ft_object = partial(parts.ft, lr=0.5), parts.Object(parts.ft)
"""


@pytest.mark.parametrize("edited", ["stated.py", "parts.py"])
@pytest.mark.parametrize("form", ["partial", "closure", "object", "decorated", "imported"])
def test_the_module_that_a_name_states_counts_whatever_the_name_leads_to(theirs, form, edited):
    folder = theirs.parent
    (folder / "parts.py").write_text(PARTS)
    (folder / "stated.py").write_text(STATED)

    def digests():
        code_digest.forget_files()
        net, metric = f"stated:net_{form}", f"stated:metric_{form}"
        return (
            code_digest.code_digest(*modules_of(net)),
            function_digest(METRICS[metric], *METRICS.stated(metric)),
        )

    try:
        before = digests()
        assert digests() == before
        with (folder / edited).open("a") as file:
            file.write("\nFACTOR = 2\n")
        after = digests()
    finally:
        for name in ("stated", "parts"):
            sys.modules.pop(name, None)
    assert after[0] != before[0] and after[1] != before[1]


def test_a_network_from_a_module_that_is_chosen_at_run_time_counts(theirs):
    folder = theirs.parent
    (folder / "hidden.py").write_text("def build(num_classes):\n    return num_classes\n")
    (folder / "chosen.py").write_text(
        "import importlib\nfrom functools import partial\n"
        "found = importlib.import_module(''.join(['hid', 'den'])).build\nnet = partial(found)\n"
    )
    try:
        assert modules_of("chosen:net") == ("chosen", "hidden")
    finally:
        for name in ("chosen", "hidden"):
            sys.modules.pop(name, None)


@pytest.mark.parametrize("form", ["partial", "object"])
def test_a_method_may_be_put_together_from_others(theirs, form):
    (theirs.parent / "parts.py").write_text(PARTS)
    (theirs.parent / "stated.py").write_text(STATED)
    try:
        method = METHODS[f"stated:ft_{form}"]
        assert method.label == f"stated:ft_{form}" and "unlearning method" in repr(method)
        cell = Cell(0, Scenario("random", fraction=0.1), f"stated:ft_{form}")
        assert {"stated", METHODS["ft"].module} <= set(cell.modules)
    finally:
        for name in ("stated", "parts"):
            sys.modules.pop(name, None)
