"""`make test-slurm`: a real Slurm on this machine computes an experiment, is killed half way, and must lead to the same bits.

Debian's slurm-wlm and munge are started from a temporary folder, on ports of their own and beside whatever else
runs; the node declares four processors. The experiment runs through ``profiles/slurm``. While it does, a job is killed,
the controller is killed and started again, and a job is put back into the queue. Its cells and their table are then compared
with those of a plain run. Needs root; where Slurm is missing, apt.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plain_run import ROOT, differences, impatient, installed, on_cluster, run_plainly, say

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "munged")
SYSTEM = Path(
    "/etc/slurm/slurm.conf"
)  # srun inside a job knows no other place; a link, for as long as this runs
CPUS = 4
HALF = 10  # of some thirty cells
LIMIT = 400  # seconds after which something hangs
MORE = {"methods": "retrain,ft,ga,salun", "seeds": "0,1"}


def why_not() -> str:
    """Why Slurm cannot be started here; empty where it can. Missing programs are installed."""
    if os.name != "posix" or os.getuid():
        return "Slurm's daemons need root"
    if SYSTEM.exists():
        return f"{SYSTEM} exists, so a Slurm is set up here already"
    if all(shutil.which(name) for name in PROGRAMS):
        return ""
    if reason := installed(*PACKAGES):
        return f"there is no Slurm here: {reason}"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(missing)} still missing" if missing else ""


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


class Slurm:
    """munged, slurmctld and slurmd of one node, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.host = socket.gethostname().partition(".")[0]
        controller, node = free_ports(2)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        self.conf = folder / "slurm.conf"
        self.conf.write_text(
            f"""ClusterName=here
SlurmctldHost={self.host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller}
SlurmdPort={node}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
MinJobAge=900
JobRequeue=1
NodeName={self.host} NodeAddr=127.0.0.1 CPUs={CPUS} RealMemory={max(memory, 16000)} State=UNKNOWN
PartitionName=all Nodes={self.host} Default=YES MaxTime=600 State=UP
"""
        )
        SYSTEM.parent.mkdir(exist_ok=True)
        SYSTEM.symlink_to(self.conf)

    def start(self, name: str) -> None:
        words = {
            "munged": [
                "munged",
                "--foreground",
                "--force",
                f"--key-file={self.folder}/munge.key",
                f"--socket={self.folder}/munge.socket",
                f"--pid-file={self.folder}/munged.pid",
                f"--seed-file={self.folder}/munged.seed",
            ],
            "slurmctld": ["slurmctld", "-D", "-f", str(self.conf)],
            "slurmd": ["slurmd", "-D", "-f", str(self.conf), "-N", self.host],
        }[name]
        log = (self.folder / f"{name}.out").open("ab")
        self.running[name] = subprocess.Popen(words, stdout=log, stderr=log)

    def ask(self, *words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def up(self) -> None:
        """Start everything and wait until the node takes jobs."""
        self.start("munged")
        wait_for(lambda: (self.folder / "munge.socket").exists(), "munged")
        self.start("slurmctld")
        self.start("slurmd")
        wait_for(lambda: self.ask("sinfo", "-h", "-o", "%t") == "idle", "an idle node")

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()

    def down(self) -> None:
        self.ask("scancel", "--user=root")
        SYSTEM.unlink()
        for name in ("slurmd", "slurmctld", "munged"):
            if name in self.running:
                self.running[name].terminate()
                self.running[name].wait()

    def jobs(self, state: str) -> list[str]:
        """Ids of jobs in a state."""
        return self.ask("squeue", "-h", "-r", "-t", state, "-o", "%i").split()


def wait_for(there: Callable[[], Any], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise SystemExit(f"waited {seconds:g} s for {what}")
        time.sleep(0.3)


WATCHED = {
    "slurm_status_command": "squeue",
    "slurm_init_seconds_before_status_checks": 3,
    "seconds_between_status_checks": 3,
    "latency_wait": 10,
}


def cells(out: Path) -> list[Path]:
    """Files of finished cells."""
    return list((out / "cells").glob("cell-*.json"))


def disturb(slurm: Slurm, out: Path, child: "subprocess.Popen[bytes]") -> None:
    """Kill a job, kill the controller and start it again, and put a job back into the queue."""

    def running() -> bool:
        if child.poll() is not None:
            raise SystemExit("the run ended before it could be disturbed")
        return bool(slurm.jobs("RUNNING"))

    def half_way() -> bool:
        return running() and len(cells(out)) >= HALF

    wait_for(half_way, "half of the cells", LIMIT)
    wait_for(running, "a running job", LIMIT)
    job = slurm.jobs("RUNNING")[0]
    say(f"killing job {job}")
    slurm.ask("scancel", "--signal=KILL", "--full", job)
    wait_for(lambda: job not in slurm.jobs("RUNNING"), "its end")
    say(f"it is {slurm.ask('squeue', '-h', '-r', '-t', 'all', '-j', job, '-o', '%T')}")
    say("killing slurmctld")
    slurm.kill("slurmctld")
    time.sleep(3)
    slurm.start("slurmctld")
    wait_for(lambda: slurm.ask("sinfo", "-h", "-o", "%t") in ("idle", "mix", "alloc"), "slurmctld")
    wait_for(running, "a running job after that", LIMIT)
    job = slurm.jobs("RUNNING")[0]
    say(f"putting job {job} back into the queue")
    slurm.ask("scontrol", "requeue", job)
    wait_for(lambda: job in slurm.jobs("PENDING"), "that job in the queue")
    slurm.ask("scontrol", "update", f"jobid={job}", "starttime=now")  # Slurm would wait two minutes


def main() -> int:
    reason = why_not()
    if reason:
        print(f"test-slurm is skipped: {reason}")
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="salun-slurm-") as scratch:
        folder = Path(scratch)
        plain, shards = folder / "plain", folder / "shards"
        run_plainly(MORE, plain, cwd=ROOT)
        say(f"the table without Slurm: {len(cells(plain))} cells")
        slurm = Slurm(folder)
        try:
            slurm.up()
            say(f"Slurm is up: {slurm.ask('sinfo', '-h', '-o', '%D node, %c CPUs, %m MB')}")
            words = on_cluster(MORE, shards, impatient("slurm", folder, **WATCHED))
            with (folder / "run.log").open("wb") as log:
                child = subprocess.Popen(words, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
                try:
                    disturb(slurm, shards, child)
                    child.wait(LIMIT)
                except (SystemExit, subprocess.TimeoutExpired) as error:
                    say(str(error))
                finally:
                    child.terminate()
                    child.wait()
            if child.returncode:
                say(slurm.ask("squeue"))
                for name in ("run.log", "shards/shards/classification-quick/snakemake.log", "slurmctld.log"):
                    print(f"--- {name}\n{(folder / name).read_text('utf8', 'replace')[-6000:]}")
                return 1
        finally:
            slurm.down()
        found = differences(plain, shards, folder)
    print("\n".join(found) or f"the same bits, after {time.monotonic() - start:.0f} s")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
