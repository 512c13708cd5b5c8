# What is out of date, and in which order. `make book` starts it; plain `snakemake --cores all` works too,
# and `snakemake --executor slurm --jobs 8` where that plugin is installed.
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "book/_ext"))
import execution

PROFILE = config.get("profile", "quick")  # quick, or smoke: the smallest settings, in a folder of their own
RUNS = execution.PROFILES[PROFILE]
SITE = execution.site(PROFILE)
PYTHON = sys.executable
NOTEBOOKS = list(execution.notebooks())


def given(name):
    return execution.parameters(name, PROFILE)


rule all:
    input:
        expand(RUNS / "notebooks/{name}.ipynb", name=NOTEBOOKS),
        SITE / "_build/html/index.html",
    localrule: True


rule execute:
    input:
        template="notebooks/{name}.ipynb",
        code=lambda w: execution.dependencies(Path(f"notebooks/{w.name}.ipynb").resolve(), given(w.name)),
        results=lambda w: [RUNS / f"notebooks/{name}.ipynb" for name in execution.before(w.name)],
    output:
        RUNS / "notebooks/{name}.ipynb",
    params:
        given=lambda w: given(w.name),
    threads: 1
    shell:
        "{PYTHON:q} book/_ext/execution.py --profile {PROFILE} execute {wildcards.name} --threads {threads}"


rule book:
    input:
        expand(RUNS / "notebooks/{name}.ipynb", name=NOTEBOOKS),
        execution.pages(),
    output:
        SITE / "_build/html/index.html",
    shell:
        "{PYTHON:q} book/_ext/execution.py --profile {PROFILE} render"
