"""`make test-kubernetes`: `profiles/kubernetes` against a stand-in of the API, with a pod killed; it must lead to the same bits.

There is no cluster: ``kubernetes_api.py`` answers what Snakemake's executor asks and runs each job here, where it sees the
project as the image has it and the volume, and no checkout. The experiment runs through ``profiles/kubernetes`` as it
is; only its jobs are looked at more often. A pod is killed, as one that needs too much memory is; the same command is then given again.
The manifests, and the table beside that of a plain run, are compared. Needs root (mount namespaces); where rsync is missing, apt.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kubernetes_api import GPU, Cluster, Pod
from plain_run import ROOT, differences, impatient, installed, on_cluster, run_plainly, say

PROJECT = Path("/home/reader/salun")  # in the image, as the Dockerfile says
VOLUME = Path("/salun")
OUT = VOLUME / "runs"
WORKDIR = Path("/workdir")  # of every pod, says Snakemake's executor
KILLED, DELETED = "tuning/random-10-ft-none", "originals/seed-0"
# Packages from beside the environment count too, this checkout does not.
BESIDE = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p and Path(p).resolve() != ROOT]
PACKAGES = {"PYTHONPATH": ":".join(BESIDE), "OMP_NUM_THREADS": "1"}
ENVIRONMENT = os.environ | PACKAGES
LIMIT = 900  # seconds after which something hangs
MORE = {"methods": "retrain,ft,salun", "seeds": "0"}


def why_not() -> str:
    """Why nothing can be tried here; empty where it can. A missing rsync is installed."""
    for name in ("snakemake_executor_plugin_kubernetes", "snakemake_storage_plugin_fs"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is missing: install the extra cluster"
    if os.name != "posix" or os.getuid():
        return "mount namespaces need root"
    if subprocess.run(
        ["unshare", "--mount", "--pid", "--mount-proc", "--fork", "true"], capture_output=True
    ).returncode:
        return "this machine gives no mount namespaces"
    if shutil.which("rsync") is None:
        return installed("rsync")
    return ""


@contextmanager
def places(*folders: Path) -> Iterator[None]:
    """Empty folders to mount on; those that had to be made are gone afterwards."""
    made = []
    try:
        for folder in folders:
            for part in (*reversed(folder.parents), folder):
                if not part.exists():
                    part.mkdir()
                    made.append(part)
        yield
    finally:
        for part in reversed(made):
            part.rmdir()


def a_checkout(folder: Path) -> None:
    """What git knows of this one, without recorded results: Snakemake sends all of it to every pod."""
    known = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(known, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and not name.startswith("data/recorded/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for words in (["init", "-q"], ["add", "--all"]):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


def shard_of(pod: Pod) -> str:
    """Which shard a pod computes; empty for the list of all."""
    found = re.search(r"stage=([^,]+),shard=([^ ']+)", pod.container["args"][1])
    return "/".join(found.groups()) if found else ""


def disturb(cluster: Cluster, folder: Path, stop: threading.Event) -> None:
    """Kill every pod of one shard, delete the first job of another, and do not answer for a moment."""
    deleted = False
    while not stop.is_set():
        time.sleep(0.2)
        for pod in list(cluster.jobs.values()):
            if pod.exit_code is not None or pod.process is None:
                continue
            if shard_of(pod) == KILLED and (folder / f"{KILLED}.json").exists():
                say(f"killing a pod of {KILLED}")
                pod.kill()
                time.sleep(1)
            elif shard_of(pod) == DELETED and not deleted:
                say(f"deleting the job of {DELETED}, and no answers for a moment")
                deleted = pod.deleted = True
                cluster.silent = 2
                pod.kill()


def run(folder: Path, cluster: Cluster, profile: Path, gpus: int) -> tuple[int, str]:
    """What `make run` does with the profile; its status and what it says."""
    words = on_cluster(MORE, OUT, profile, "--gpus", str(gpus))
    environment = ENVIRONMENT | {"KUBECONFIG": str(cluster.kubeconfig()), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        text=True,
        capture_output=True,
        timeout=LIMIT,
    )
    return done.returncode, done.stderr[-3000:]


def faults(pods: list[Pod], shards: dict[str, Any], gpus: int) -> list[str]:
    """What jobs ask for and should not, or should and do not."""
    found, tries = [], Counter[str]()
    for pod in pods:
        name, asked = shard_of(pod) or "gather", pod.container["resources"]
        tries[name] += 1
        wanted = {"memory": f"{shards[name]['mem_mb'] * tries[name] if name in shards else 4000}M"}
        wanted |= {GPU: str(gpus)} if gpus and name in shards else {}
        for kind in ("requests", "limits"):
            have = {what: amount for what, amount in asked[kind].items() if what in ("memory", GPU)}
            if have != wanted:
                found.append(f"{name}: {kind} are {have}, not {wanted}")
        if bool(pod.template.get("tolerations")) != (GPU in wanted):
            found.append(f"{name}: tolerations are {pod.template.get('tolerations')}")
        if pod.container["image"] != "salun:latest":
            found.append(f"{name}: the image is {pod.container['image']}")
        if {"name": "salun", "mountPath": str(VOLUME)} not in pod.container["volumeMounts"]:
            found.append(f"{name}: the volume is not mounted")
        if "activeDeadlineSeconds" in json.dumps(pod.manifest):
            found.append(f"{name}: there is a limit of time now; the profile says that there is none")
    return found


def check(folder: Path) -> list[str]:
    """Run it all; what is wrong."""
    checkout, plain, pods, volume = (folder / name for name in ("checkout", "plain", "pods", "volume"))
    for path in (checkout, pods, volume):
        path.mkdir()
    a_checkout(checkout)
    run_plainly(MORE, plain, cwd=checkout, env=ENVIRONMENT)
    say("the table without a cluster is there")
    subprocess.run(["mount", "--bind", volume, VOLUME], check=True)
    cluster = Cluster(
        pods,
        image={ROOT: None, checkout: None, PROJECT / ".venv": Path(sys.prefix).resolve()},
        volumes={"salun": volume},
        environment={"PATH": "/usr/bin:/bin", "HOME": "/tmp"} | PACKAGES,
    )
    try:
        shards = OUT / "shards/classification-quick"
        profile = impatient("kubernetes", folder, seconds_between_status_checks=1)
        calm = threading.Event()
        threading.Thread(target=disturb, args=[cluster, shards, calm], daemon=True).start()
        status, said = run(checkout, cluster, profile, gpus=0)
        plan = json.loads((shards / "plan.json").read_text("utf8"))["shards"]
        first = list(cluster.jobs.values())
        done = {name for name in plan if (shards / f"{name}.done").exists()}
        found = faults(first, plan, gpus=0)
        if status != 1 or f"{KILLED} ended before it was done" not in said:
            found.append(f"a shard was killed, and the run ended with {status}, saying {said}")
        if wrong := {name for name in plan if name.startswith(("originals", "tuning"))} - {KILLED} - done:
            found.append(f"not done, though nothing kept it: {wrong}")
        say(f"killed three times: {KILLED}; done: {', '.join(sorted(done))}")
        calm.set()
        status, said = run(checkout, cluster, profile, gpus=1)
        found += faults(second := list(cluster.jobs.values())[len(first) :], plan, gpus=1)
        if status:
            found.append(f"the same command again ended with {status}, saying {said}")
        if again := {shard_of(pod) for pod in second} & done:
            found.append(f"computed again though it was done: {again}")
        if cluster.secrets or any(not pod.deleted for pod in cluster.jobs.values()):
            found.append("jobs or secrets are left in the cluster")
        if found:
            print((shards / "snakemake.log").read_text("utf8", "replace")[-6000:])
        return found or differences(plain, OUT, folder)
    finally:
        cluster.close()
        subprocess.run(["umount", "--lazy", VOLUME])


def main() -> int:
    reason = why_not()
    if reason:
        print(f"test-kubernetes is skipped: {reason}")
        return 0
    if "--inside" not in sys.argv:  # mounts are seen by this process and its children only
        return subprocess.run(["unshare", "--mount", sys.executable, __file__, "--inside"]).returncode
    start = time.monotonic()
    with (
        places(VOLUME, PROJECT / ".venv", WORKDIR),
        tempfile.TemporaryDirectory(prefix="salun-pods-") as scratch,
    ):
        found = check(Path(scratch))
    print("\n".join(found) or f"the same bits, after {time.monotonic() - start:.0f} s")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
