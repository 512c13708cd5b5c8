# What is out of date, and in which order. `make book` starts it; plain `snakemake --cores all` works too,
# and `snakemake --executor slurm --jobs 8` where that plugin is installed.
import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "book/_ext"))
import execution
import pods

PROFILE = config.get("profile", "quick")  # quick, or smoke: the smallest settings, in a folder of their own
RUNS = execution.PROFILES[PROFILE]
SITE = execution.site(PROFILE)
PYTHON = sys.executable
SHARED = config.get("shared", "")  # where folders of runs lie that are not here: a volume, see profiles/kubernetes
PLANS = execution.plans(config.get("plans", []), SHARED)  # by folder: runs in shards, see book/_ext/sharding.py
MEMORY = config.get("memory", float("inf"))  # MB that shards have together on this machine
NOTEBOOKS = list(execution.notebooks())
if SHARED and workflow.is_main_process:
    pods.mend()


def given(name):
    return execution.parameters(name, PROFILE)


rule all:
    input:
        expand(RUNS / "notebooks/{name}.ipynb", name=NOTEBOOKS),
        SITE / "_build/html/index.html",
    localrule: True


# --- runs in shards -----------------------------------------------------------------------------------
# originals and tuning -> shard -> gather. A mark, NAME.done, says that a shard has done what it could; which of its
# cells failed is in NAME.json, and `python -m salun_core plan` takes the mark of such a shard away.


wildcard_constraints:
    shard="[^/]+",


def shard(wildcards):
    return PLANS[wildcards.run]["shards"][f"{wildcards.stage}/{wildcards.shard}"]


def marks(run, names):
    return [f"{run}/{name}.done" for name in names]


def there(name):
    # Marks go through Snakemake's storage where it assumes no shared files. All else is read and written in place.
    return str(Path(SHARED, name))


rule originals:
    input:
        lambda w: marks(w.run, shard(w)["needs"]),
    output:
        touch("{run}/{stage,originals}/{shard}.done"),
    log:
        local(there("{run}/{stage}/{shard}.log")),
    params:
        plan=lambda w: there(f"{w.run}/plan.json"),
    threads: lambda w: PLANS[w.run]["threads"] or 1
    resources:
        gpu=lambda w: shard(w)["gpu"] or None,  # a 0 would still let Kubernetes choose a node that has some
        mem_mb=lambda w, attempt: min(shard(w)["mem_mb"] * attempt, MEMORY),
        runtime=lambda w: shard(w)["runtime"],
    retries: 2
    shell:
        "OMP_NUM_THREADS={threads} {PYTHON:q} -m salun_core shard {params.plan:q}"
        " {wildcards.stage}/{wildcards.shard} > {log:q} 2>&1"


use rule originals as tuning with:
    output:
        touch("{run}/{stage,tuning}/{shard}.done"),


use rule originals as shard with:
    output:
        touch("{run}/{stage,cells}/{shard}.done"),


rule gather:
    input:
        lambda w: marks(w.run, PLANS[w.run]["shards"]),
    output:
        touch("{run}/gathered.done"),
    log:
        local(there("{run}/gather.log")),
    params:
        plan=lambda w: there(f"{w.run}/plan.json"),
    shell:
        "{PYTHON:q} -m salun_core shard {params.plan:q} > {log:q} 2>&1"


# --- the book -----------------------------------------------------------------------------------------


rule execute:
    input:
        template="notebooks/{name}.ipynb",
        code=lambda w: execution.dependencies(Path(f"notebooks/{w.name}.ipynb").resolve(), given(w.name)),
        shards=lambda w: execution.gathered(w.name, PLANS),
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
