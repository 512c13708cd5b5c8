"""The environment is described four times; all four must say the same."""

import re
import subprocess
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
REQUIRED = PROJECT["dependencies"] + [r for extra in PROJECT["optional-dependencies"].values() for r in extra]


@pytest.fixture(scope="module")
def locked() -> dict[str, list[tuple[Requirement, int]]]:
    """Every pinned requirement of the lock by its name, with the number of its hashes."""
    pins = defaultdict(list)
    text = (ROOT / "requirements.lock").read_text("utf8").replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            named, *hashes = line.split("--hash=sha256:")
            pin = Requirement(named)
            pins[canonicalize_name(pin.name)].append((pin, len(hashes)))
    return pins


def test_conda_users_get_the_same_dependencies():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text("utf8"))["dependencies"]
    pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + extras["diffusion"] + extras["book"]  # what the chapters run
    assert sorted(map(str, map(Requirement, pip))) == sorted(map(str, map(Requirement, wanted)))
    python = next(entry for entry in listed if isinstance(entry, str) and entry.startswith("python="))
    assert Version(python.partition("=")[2]) in SpecifierSet(PROJECT["requires-python"])


def test_binder_installs_the_project_too():
    script = ROOT / "postBuild"
    assert script.stat().st_mode & 0o111  # Binder runs it as a program
    assert "pip install --no-deps -e ." in script.read_text("utf8").splitlines()


def test_the_container_writes_only_where_its_user_may():
    """A folder mounted from outside belongs to another user: hours of work would end in a refused copy."""
    text = (ROOT / "Dockerfile").read_text("utf8")
    (workdir,) = re.findall(r"^WORKDIR (\S+)$", text, re.MULTILINE)
    assert f"docker cp salun:{workdir}/_build/html " in text  # where `make book` leaves the pages
    assert re.findall(r"^CMD (.+)$", text, re.MULTILINE) == ['["make", "book"]']
    assert " -v " not in text


@pytest.mark.parametrize("text", [*REQUIRED, "setuptools>=77"])  # setuptools builds the project itself
def test_the_lock_satisfies_every_requirement(locked, text):
    wanted = Requirement(text)
    pins = [pin for pin, _ in locked[canonicalize_name(wanted.name)]]
    assert pins, f"{wanted.name} is not in requirements.lock: make lock"
    for pin in pins:
        (only,) = pin.specifier
        assert only.operator == "=="
        assert only.version in wanted.specifier


def test_every_locked_package_is_pinned_and_hashed(locked):
    loose = [str(pin) for pins in locked.values() for pin, hashes in pins if hashes == 0]
    assert loose == []


def test_the_lock_names_nothing_that_is_not_needed(locked):
    """Each line of the lock says why it is there; a package that left pyproject.toml leaves no reason."""
    text = (ROOT / "requirements.lock").read_text("utf8")
    direct = set()
    for block in re.split(r"\n(?=[a-z0-9])", text):
        if "salun-companion (pyproject.toml)" in block:
            direct.add(canonicalize_name(re.match(r"[\w.-]+", block)[0]))
    assert direct == {canonicalize_name(Requirement(text).name) for text in REQUIRED}


def test_no_registry_address_is_in_git():
    words = ["/".join(("", "simple")) + r"\b", "files" + r"\.pythonhosted", "--(extra-)?index" + "-url"]
    found = subprocess.run(
        ["git", "grep", "-nIE", "|".join(words), "--", "."], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode > 1:
        pytest.skip("not a git checkout")
    hits = [line for line in found.stdout.splitlines() if "no-emit-index" + "-url" not in line]
    assert hits == []
