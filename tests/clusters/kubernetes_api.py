"""The part of Kubernetes' API that Snakemake's executor uses. Jobs run as processes of this machine.

What a pod would see is imitated with a mount namespace: the project as the image has it, the volume, and an empty folder
instead of the checkout. A job is refused as a cluster would refuse it where limits and requests do not fit, and the
log of a container that was not started twice has no earlier one. There are no nodes, no users and no limits of memory.
"""

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

QUANTITY = re.compile(r"\d+(m|M|Mi|G|Gi)?")
GPU = "nvidia.com/gpu"


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Pod:
    """A job with its only pod.

    Parameters
    ----------
    manifest : dict
        The job, as it was sent.
    folder : Path
        For its log and its empty working folder.
    """

    def __init__(self, manifest: dict[str, Any], folder: Path) -> None:
        self.manifest = manifest
        self.name = manifest["metadata"]["name"]
        self.template = manifest["spec"]["template"]["spec"]
        (self.container,) = self.template["containers"]
        self.log = folder / f"{self.name}.log"
        self.workdir = folder / self.name
        self.workdir.mkdir()
        self.process: subprocess.Popen[bytes] | None = None
        self.exit_code: int | None = None
        self.deleted = False

    def status(self) -> dict[str, Any]:
        """Of the job."""
        if self.exit_code is None:
            return {"active": 1}
        return {"failed": 1} if self.exit_code else {"succeeded": 1}

    def pod(self) -> dict[str, Any]:
        """The pod, as a list of pods has it."""
        state: dict[str, Any] = {"waiting": {"reason": "ContainerCreating"}}
        if self.exit_code is not None:
            reason = {0: "Completed", 137: "OOMKilled"}.get(self.exit_code, "Error")
            state = {"terminated": {"exitCode": self.exit_code, "reason": reason}}
        elif self.process is not None:
            state = {"running": {}}
        container = {"name": self.container["name"], "state": state, "ready": False, "restartCount": 0}
        container |= {"image": self.container["image"], "imageID": ""}
        return {
            "metadata": {"name": f"{self.name}-0", "labels": {"job-name": self.name}},
            "spec": self.template,
            "status": {"containerStatuses": [container]},
        }

    def kill(self) -> None:
        """End its processes, as a node without memory does."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


class Cluster:
    """The server and all that it was asked for.

    Parameters
    ----------
    folder : Path
        An empty folder.
    image : dict of Path to Path
        What the image has, by where: folders of this machine that are mounted there. None for an empty folder.
    volumes : dict of str to Path
        Folders of this machine that claims stand for.
    environment : dict of str to str
        Of every container.
    slots : int
        Pods that run at the same time.
    """

    def __init__(
        self,
        folder: Path,
        *,
        image: dict[Path, Path | None],
        volumes: dict[str, Path],
        environment: dict[str, str],
        slots: int = 1,
    ) -> None:
        self.folder, self.image, self.volumes, self.environment = folder, image, volumes, environment
        self.jobs: dict[str, Pod] = {}
        self.secrets: dict[str, dict[str, Any]] = {}
        self.slots = threading.Semaphore(slots)
        self.lock = threading.Lock()
        self.silent = 0  # questions that get no answer
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                url = urlsplit(self.path)
                query = {name: values[-1] for name, values in parse_qs(url.query).items()}
                try:
                    with cluster.lock:
                        status, said = 200, cluster.answer(self.command, url.path, query, body)
                except Refused as error:
                    status, said = (
                        error.status,
                        {"kind": "Status", "message": str(error), "code": error.status},
                    )
                data = said.encode() if isinstance(said, str) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header(
                    "Content-Type", "text/plain" if isinstance(said, str) else "application/json"
                )
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def kubeconfig(self) -> Path:
        """Write the file that leads clients here."""
        file = self.folder / "kubeconfig"
        server = f"http://127.0.0.1:{self.server.server_address[1]}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
            "clusters": [{"name": "here", "cluster": {"server": server}}],
            "users": [{"name": "here", "user": {}}],
        }
        file.write_text(json.dumps(config))
        return file

    def close(self) -> None:
        """End all pods and the server."""
        for job in self.jobs.values():
            job.deleted = True
            job.kill()
        self.server.shutdown()
        self.server.server_close()

    # --- answers ----------------------------------------------------------------------------------

    def answer(self, verb: str, path: str, query: dict[str, str], body: dict[str, Any]) -> Any:
        """What the API says; paths are those of the default namespace."""
        if self.silent and verb == "GET":
            self.silent -= 1
            raise Refused(503, "the server is currently unable to handle the request")
        found = re.fullmatch(
            r"/(?:api|apis/batch)/v1/namespaces/default/(secrets|jobs|pods)(?:/([^/]+))?(/\w+)?", path
        )
        if found is None:
            raise Refused(404, f"{verb} {path} is not imitated")
        kind, name, part = found.groups()
        match verb, kind, part:
            case "POST", "secrets", None:
                self.secrets[body["metadata"]["name"]] = body
                return body
            case "DELETE", "secrets", None if name in self.secrets:
                del self.secrets[name]
                return {"kind": "Status", "status": "Success"}
            case "POST", "jobs", None:
                return self.start(body)
            case "GET", "jobs", "/status" if name in self.jobs and not self.jobs[name].deleted:
                return self.jobs[name].manifest | {"status": self.jobs[name].status()}
            case "GET", "pods", None if name is None:
                wanted = query["labelSelector"].removeprefix("job-name=")
                items = [j.pod() for j in self.jobs.values() if j.name == wanted and not j.deleted]
                return {"kind": "PodList", "apiVersion": "v1", "items": items}
            case "GET", "pods", "/log" if name.removesuffix("-0") in self.jobs:
                if query.get("previous", "").lower() == "true":
                    raise Refused(400, f'previous terminated container "snakemake" in pod "{name}" not found')
                return self.jobs[name.removesuffix("-0")].log.read_text("utf8", "replace")
            case "DELETE", "pods" | "jobs", None if name.removesuffix("-0") in self.jobs:
                job = self.jobs[name.removesuffix("-0")]
                job.deleted |= kind == "jobs"
                job.kill()
                return {"kind": "Status", "status": "Success"}
        raise Refused(404, f'{kind} "{name}" not found')

    def start(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Take a job, and run it when there is room."""
        name = manifest["metadata"]["name"]
        if name in self.jobs and not self.jobs[name].deleted:
            raise Refused(409, f'jobs.batch "{name}" already exists')
        (container,) = manifest["spec"]["template"]["spec"]["containers"]
        asked = container["resources"].get("requests", {})
        limits = container["resources"].get("limits", {})
        for what, amount in (asked | limits).items():
            if not QUANTITY.fullmatch(amount):
                raise Refused(400, f"{what}: {amount!r} is no quantity")
        if asked.get(GPU) != limits.get(GPU):
            raise Refused(422, f"{GPU}: must be equal to its limit")
        known = {volume["name"] for volume in manifest["spec"]["template"]["spec"]["volumes"]}
        for mount in container["volumeMounts"]:
            if mount["name"] not in known:
                raise Refused(422, f"volumeMounts: {mount['name']!r} not found")
        if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) is None:
            raise Refused(422, f"metadata.name: {name!r}")
        self.jobs[name] = Pod(
            manifest | {"metadata": manifest["metadata"] | {"uid": str(uuid.uuid4())}}, self.folder
        )
        threading.Thread(target=self.run, args=[self.jobs[name]], daemon=True).start()
        return self.jobs[name].manifest

    def run(self, job: Pod) -> None:
        """Run the container's command among what the pod would see."""
        claims = {
            v["name"]: self.volumes[v["persistentVolumeClaim"]["claimName"]]
            for v in job.template["volumes"]
            if "persistentVolumeClaim" in v
        }
        mounts: list[tuple[Path | None, Path]] = [(here, place) for place, here in self.image.items()]
        for mount in job.container["volumeMounts"]:
            mounts.append((claims.get(mount["name"], job.workdir), Path(mount["mountPath"])))
        command = 'cd "$0" && exec "$@"'
        words = [job.container["workingDir"], *job.container["command"], *job.container["args"]]
        with self.slots, tempfile.TemporaryDirectory(dir=self.folder) as scratch, job.log.open("wb") as log:
            if job.deleted:
                return
            # What is mounted may lie below a folder that is to be hidden, so all are put aside first.
            script = ["set -e"]
            for number, (here, _) in enumerate(mounts):
                aside = Path(scratch, str(number))
                aside.mkdir()
                script += [f"mount --bind '{here}' '{aside}'"] if here else []
            for number, (_, place) in enumerate(mounts):
                script += [f"mkdir -p '{place}'", f"mount --bind '{scratch}/{number}' '{place}'"]
            script += [command]
            job.process = subprocess.Popen(
                [
                    "unshare",
                    "--mount",
                    "--pid",
                    "--mount-proc",
                    "--fork",
                    "--kill-child",
                    "sh",
                    "-c",
                    "\n".join(script),
                    *words,
                ],
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,
                cwd="/",
            )
            code = job.process.wait()
        job.exit_code = 128 - code if code < 0 else code
