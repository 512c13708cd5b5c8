"""The package as it is published: built, installed without a checkout, and used with little else installed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import salun_core

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]

NOT_INSTALLED = """
import os
from importlib.machinery import PathFinder

hidden, find = set(os.environ.get("HIDDEN", "").split()), PathFinder.find_spec


def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)


PathFinder.find_spec = staticmethod(find_spec)  # as if they were not installed
"""


def imports_of(extras):
    """Names under which the packages of extras are imported, as far as they differ from the distribution's."""
    differ = {"jupyter-book": "jupyter_book", "open-clip-torch": "open_clip"}
    names = [Requirement(text).name.lower().replace("_", "-") for e in extras for text in extras[e]]
    return {differ.get(name, name.replace("-", "_")) for name in names}


def run(*words, cwd, hidden=(), ok=True):
    done = subprocess.run(
        [*map(str, words)],
        cwd=cwd,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(cwd),
            "OMP_NUM_THREADS": "1",
            "HIDDEN": " ".join(hidden),
        },
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel and a source distribution, from the files that git knows."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, files.split("\0")):
        if not name.startswith(("data/recorded/", "data/runs/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-W", "error", "-m", "build", "--no-isolation", "--outdir", out, cwd=source)
    return {path.suffix: path for path in out.iterdir()}


@pytest.fixture(scope="module")
def elsewhere(built, tmp_path_factory):
    """Python of a fresh environment with the wheel in it, which sees the other packages of this one."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", built[".whl"], cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join(others))
    (site / "sitecustomize.py").write_text(NOT_INSTALLED)
    return python


def test_wheel_and_source_distribution_hold_what_is_needed_and_no_more(built):
    wheel = zipfile.ZipFile(built[".whl"]).namelist()
    tops = {name.partition("/")[0] for name in wheel}
    assert tops == {"salun_core", f"salun_companion-{salun_core.__version__}.dist-info"}
    for needed in (
        "salun_core/py.typed",
        "salun_core/experiments/presets/classification/quick.yaml",
        "salun_core/shipped/data/models/tiny-sd/unet/diffusion_pytorch_model.safetensors",
        "salun_core/shipped/data/models/tiny-sd-clip/config.json",
    ):
        assert needed in wheel
    assert built[".whl"].stat().st_size < 20e6
    with tarfile.open(built[".gz"]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"salun_core/__init__.py", "data/models/tiny-sd/model_index.json", "setup.py", "LICENSE"} <= held
    assert not any(name.startswith(("tests/", "notebooks/", "data/recorded", "book/")) for name in held)


def test_a_wheel_built_from_the_source_distribution_is_the_same(built, tmp_path):
    with tarfile.open(built[".gz"]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "out", cwd=source)
    (again,) = (tmp_path / "out").iterdir()
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(built[".whl"]).namelist())


def test_the_index_would_take_it(built, tmp_path):
    run(sys.executable, "-m", "twine", "check", "--strict", *built.values(), cwd=tmp_path)


def test_the_version_stands_in_one_place():
    version = salun_core.__version__
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))["version"] == version
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf8"), re.MULTILINE)[1]
    assert newest == version


TEN_LINES = """
import sys
import torch
from torch import nn
from salun_core import METHODS, classification_task, evaluate, saliency_mask

assert "site-packages" in __import__("salun_core").__file__
torch.manual_seed(0)
images, labels = torch.rand(60, 1, 4, 4), torch.arange(60) % 3
batches = lambda first, last: [(images[i : i + 10], labels[i : i + 10]) for i in range(first, last, 10)]
model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
forget_loader, retain_loader, test_loader = batches(0, 20), batches(20, 40), batches(40, 60)

task = classification_task(model, forget=forget_loader, retain=retain_loader)
mask = saliency_mask(model, forget_loader, task.loss, keep=0.5)
unlearned = METHODS["salun"](task, mask=mask, epochs=5, lr=0.01)
report = evaluate(unlearned.model, forget=forget_loader, retain=retain_loader, test=test_loader)
print(report)
"""


def test_the_ten_lines_run_from_an_installed_wheel_without_the_extras(elsewhere, tmp_path):
    hidden = imports_of(PROJECT["optional-dependencies"])
    shown = run(elsewhere, "-W", "error::UserWarning", "-c", TEN_LINES, cwd=tmp_path, hidden=hidden)
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["UA", "RA", "TA", "MIA"]


def test_an_experiment_runs_from_an_installed_wheel_without_the_extras(elsewhere, tmp_path):
    hidden = imports_of(PROJECT["optional-dependencies"])
    given = {"dataset": "digits", "epochs": 1, "methods": "[retrain, ft]", "seeds": "[0]", "tune": False}
    given |= {"scenario": "[random]", "arch": "resnet18", "width": 4, "recipe": "digits", "threads": 1}
    words = [word for name, value in given.items() for word in ("-p", name, value)]
    run(
        elsewhere,
        "-m",
        "salun_core",
        "run",
        "classification",
        "-p",
        "preset",
        "quick",
        *words,
        cwd=tmp_path,
        hidden=hidden,
    )
    shown = run(
        elsewhere,
        "-m",
        "salun_core",
        "results",
        "classification",
        "--format",
        "csv",
        cwd=tmp_path,
        hidden=hidden,
    )
    assert "retrain" in shown and "ft" in shown
    assert (tmp_path / "data" / "runs").is_dir()  # what is made lies where the command is given


def test_a_missing_extra_is_named_in_one_sentence(elsewhere, tmp_path):
    words = ("-m", "salun_core", "run", "diffusion", "-p", "preset", "quick")
    said = run(elsewhere, *words, cwd=tmp_path, hidden=["diffusers"], ok=False)
    assert said.strip() == (
        "salun_core: this needs diffusers, which is not installed: pip install 'salun-companion[diffusion]'"
    )


def test_the_small_pipeline_is_found_in_an_installed_wheel(elsewhere, tmp_path):
    code = """
        from salun_core.experiments.text_to_image.params import source_of
        from salun_core.models.text_to_image.pipelines import load_pipeline
        pipe = load_pipeline(source_of("data/models/tiny-sd"))
        print(type(pipe).__name__, source_of("data/models/tiny-sd-clip").is_dir())
    """
    assert run(elsewhere, "-c", "\n".join(map(str.strip, code.splitlines())), cwd=tmp_path).split() == [
        "StableDiffusionPipeline",
        "True",
    ]
