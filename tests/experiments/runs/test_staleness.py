"""What an edit of the code makes out of date: cells, metrics of stored cells, and notebooks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from execution import dependencies

from salun_core.code_digest import HERE, code_digest, forget_files, function_digest
from salun_core.experiments.classification import lab as classification
from salun_core.experiments.diffusion import lab as diffusion
from salun_core.experiments.generation import lab as generation
from salun_core.experiments.text_to_image import lab as text_to_image
from salun_core.experiments.text_to_image import probes
from salun_core.methods import METHODS
from salun_core.metrics import KINDS
from salun_core.models import modules_of

ROOT = Path(__file__).parents[3]


def cell(lab, method, *more):
    return (*lab.CODE, METHODS[method].module, *more), lab.LABS


RESNET, VGG = modules_of("resnet18"), modules_of("vgg16")
CELLS = {
    # Modules that count with all that they import, and those that count alone.
    "classifier rl": cell(classification, "rl", *RESNET),
    "classifier ft": cell(classification, "ft", *RESNET),
    "classifier salun vgg": cell(classification, "salun", *VGG),
    "classifier bs": cell(classification, "bs", *RESNET),
    "ddpm salun": cell(diffusion, "salun"),
    "ddpm esd": cell(diffusion, "esd"),
    "sd salun": cell(text_to_image, "salun"),
    "sd uce": cell(text_to_image, "uce"),
    "judged": ((generation.JUDGING,), generation.LABS),
    "probed": (probes.CODE, probes.LABS),
}
NOTEBOOKS = ("classification", "saliency", "ddpm", "sd_class", "sd_nsfw", "explorer")
CLASSIFIERS = {name for name in CELLS if name.startswith("classifier")}
DDPM, SD = ({name for name in CELLS if name.startswith(kind)} for kind in ("ddpm", "sd"))
ALL = CLASSIFIERS | DDPM | SD
GENERATED = {"FD", "OA", "UA generated"}

EDITS = {
    # An edited module: the cells and the metrics that it makes out of date.
    "saliency": (ALL | {"probed"}, set()),
    "rng": (ALL | {"judged", "probed"}, {"UA", "MIA", *GENERATED}),
    "data.splits": (ALL, {"UA", "MIA"}),
    "data.augment": (CLASSIFIERS | DDPM, set()),
    "models.build": (CLASSIFIERS, set()),
    "models.classification.vgg": ({"classifier salun vgg"}, set()),
    "models.diffusion.unet": (DDPM | SD | {"probed"}, set()),
    "models.text_to_image.deltas": (SD | {"probed"}, set()),
    "models.text_to_image.sampling": (SD | {"probed"}, set()),
    "tasks.classification": (CLASSIFIERS | DDPM, set()),  # wrong classes are drawn there for both
    "tasks.classification_training": (CLASSIFIERS | DDPM, set()),
    "tasks.diffusion_training": (DDPM | SD | {"probed"}, set()),
    "tasks.text_to_image": (SD | {"probed"}, set()),
    "methods.engine": (ALL, set()),
    "methods.any_task.rl": (
        {"classifier rl", "classifier salun vgg", "ddpm salun", "sd salun"},
        set(),
    ),
    "methods.any_task.ft": ({"classifier ft"}, set()),
    "methods.classification.bs": ({"classifier bs"}, set()),
    "methods.diffusion.uce": ({"sd uce"}, set()),
    "metrics.classification.mia": (set(), {"MIA"}),
    "metrics.classification.accuracy": (set(), {"UA"}),
    "metrics.classification.outputs": (CLASSIFIERS, {"UA", "MIA"}),
    "metrics.generation.recognition": ({"judged", "probed"}, GENERATED),
    "metrics.generation.frechet": ({"judged"}, GENERATED),
    "experiments.runs.cells": (ALL, set()),
    "experiments.classification.problem": (CLASSIFIERS, set()),
    "experiments.diffusion.problem": (DDPM, set()),
    "experiments.text_to_image.problem": (SD, set()),
    "experiments.generation.judging": ({"judged"}, set()),
    "experiments.runs.lab": (ALL | {"judged"}, set()),
    "experiments.classification.lab": (CLASSIFIERS, set()),
    "experiments.generation.lab": (DDPM | SD | {"judged"}, set()),
    "experiments.diffusion.lab": (DDPM, set()),
    "experiments.text_to_image.lab": (SD | {"probed"}, set()),
    "experiments.text_to_image.probes": ({"probed"}, set()),
    "experiments.text_to_image.prompt_attacks": ({"probed"}, set()),
    "metrics.generation.prompt_attacks.p4d": ({"probed"}, set()),
    "metrics.generation.prompt_attacks.tokens": ({"probed"}, set()),
    "metrics.generation.erasure": ({"probed"}, set()),
    # What cannot change a number.
    "experiments.runs.provenance": (set(), set()),
    "experiments.runs.table": (set(), set()),
    "pages.tables": (set(), set()),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the project's code to edit."""
    top = tmp_path_factory.mktemp("copy")
    shutil.copytree(HERE / "salun_core", top / "salun_core", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "notebooks", top / "notebooks")
    (top / "data/published").mkdir(parents=True)
    return top


def digests(top):
    forget_files()
    metrics = {
        "UA": KINDS["classification"].metrics["UA"],
        "MIA": KINDS["classification"].metrics["MIA"],
        "UA generated": KINDS["diffusion"].metrics["UA"],
        "OA": KINDS["diffusion"].metrics["OA"],
        "FD": KINDS["diffusion"].metrics["FD"],
    }
    return {
        **{n: code_digest(*modules, alone=alone, folders=[top]) for n, (modules, alone) in CELLS.items()},
        **{name: function_digest(metric, folders=[top]) for name, metric in metrics.items()},
    }


@pytest.fixture(scope="module")
def before(copy):
    found = digests(copy)
    yield found
    forget_files()


def test_two_cells_of_different_code_have_different_digests(before):
    assert len(set(before.values())) == len(before)


def package_file(top: Path, module: str) -> Path:
    base = top.joinpath("salun_core", *module.split("."))
    return base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"


@pytest.mark.parametrize("module", EDITS)
def test_an_edit_makes_out_of_date_what_it_can_change_and_nothing_else(copy, before, module):
    cells, metrics = EDITS[module]
    file = package_file(copy, module)
    original = file.read_text("utf8")
    try:
        file.write_text(f"{original}\nEDITED = 1\n")
        after = digests(copy)
    finally:
        file.write_text(original)
    assert {name for name in before if after[name] != before[name]} == cells | metrics


def test_comments_and_docstrings_make_nothing_out_of_date(copy, before):
    file = package_file(copy, "saliency")
    original = file.read_text("utf8")
    try:
        file.write_text(original.replace('"""', '"""Other words. ', 1) + "\n# a comment\n")
        assert digests(copy) == before
    finally:
        file.write_text(original)


def test_a_table_that_a_module_reads_counts_with_it(copy):
    def judge():
        forget_files()
        return code_digest("salun_core.metrics.generation.imagenet", folders=[copy])

    file = copy / "salun_core/metrics/generation/imagenet_wordnet_ids.txt"
    original, before = file.read_text(), judge()
    first, second, rest = original.split("\n", 2)
    try:
        file.write_text("\n".join([second, first, rest]))
        assert judge() != before
    finally:
        file.write_text(original)
    assert judge() == before
    notebook = copy / "notebooks/sd_class.ipynb"
    assert file.relative_to(copy) in dependencies(notebook, {}, copy)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_depends_on_what_its_cells_and_its_metrics_depend_on(copy, name):
    forget_files()
    found = {path.as_posix() for path in dependencies(copy / f"notebooks/{name}.ipynb", {}, copy)}
    every = {"metrics/classification/mia.py", "metrics/generation/frechet.py", "pages/tables.py"}
    own = {
        "classification": {"methods/classification/iu.py", "models/classification/resnet.py"},
        "saliency": {"experiments/classification/mask_agreement.py"},
        "ddpm": {"experiments/diffusion/problem.py", "models/diffusion/unet.py"},
        "sd_class": {"experiments/text_to_image/problem.py", "methods/diffusion/uce.py"},
        "sd_nsfw": {"experiments/text_to_image/probes.py", "metrics/generation/detection.py"},
        "explorer": set(),
    }[name]
    tables = {path for path in every if "pages/tables" not in path or (copy / "salun_core" / path).is_file()}
    assert {f"salun_core/{path}" for path in tables | own} <= found


def test_a_corrected_metric_shows_in_the_table_and_needs_no_run(tmp_path):
    shutil.copytree(
        HERE / "salun_core", tmp_path / "salun_core", ignore=shutil.ignore_patterns("__pycache__")
    )
    given = {"epochs": 1, "methods": ["ft"], "tune": False, "noise_floor": 0, "seeds": [0]}
    given |= {"scenario": ["random"], "settings": {"ft": {"epochs": 1}}, "out_dir": str(tmp_path / "out")}

    def called(*words):
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "salun_core", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    called("run", "classification", *(x for n, v in given.items() for x in ("-p", n, json.dumps(v))))

    def rows():
        text = called("results", "classification", "--out", str(tmp_path / "out"), "--format", "json")
        return [row for row in json.loads(text) if row["reported"]]

    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cells").iterdir() if path.is_file()}
    first = rows()
    accuracy = tmp_path / "salun_core/metrics/classification/accuracy.py"
    accuracy.write_text(accuracy.read_text().replace('evaluation, "retain")', 'evaluation, "test")'))
    second = rows()
    assert [row["RA"] for row in second] == [row["TA"] for row in first] != [row["RA"] for row in first]
    assert [row["UA"] for row in second] == [row["UA"] for row in first]
    assert {path: path.stat().st_mtime_ns for path in cells} == cells
