"""What is said of the code that computed a result."""

import subprocess

import pytest

import salun_core
from salun_core.experiments.runs import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    package = tmp_path / "salun_core"
    (package / "metrics").mkdir(parents=True)
    for file in ("__init__.py", "metrics/mia.py"):
        (package / file).write_text("")
    (tmp_path / "README.md").write_text("")
    for words in (
        ("init", "-q"),
        ("add", "."),
        ("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "one"),
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(salun_core, "__file__", str(package / "__init__.py"))
    provenance.revision.cache_clear()
    yield tmp_path
    provenance.revision.cache_clear()


@pytest.mark.parametrize(
    ("edited", "marked"), [(None, False), ("README.md", False), ("salun_core/metrics/mia.py", True)]
)
def test_a_revision_tells_of_an_edit_anywhere_in_the_package(checkout, edited, marked):
    if edited:
        (checkout / edited).write_text("1")
    assert provenance.revision().endswith("+") == marked
    assert len(provenance.revision().rstrip("+")) == 12
