"""Mends what Snakemake's executor for Kubernetes (0.5.1) makes of three answers of a cluster; the Snakefile calls it.

Each of them would end or block a whole run. The log of a pod that failed is asked for as that of an *earlier* start, and a pod
is started once, so the cluster refuses, and Snakemake stops watching all jobs. A job that somebody deleted, or a cluster
that does not answer for a moment, makes the executor forget the job and wait for it forever.
"""

import time
from typing import Any

WAITS = (1, 5, 25, 125)  # seconds before asking again


def mend() -> None:
    """Change the client of Kubernetes in this process."""
    from kubernetes.client import ApiException, BatchV1Api, CoreV1Api

    log, status = CoreV1Api.read_namespaced_pod_log, BatchV1Api.read_namespaced_job_status

    def only_log(api: Any, **given: Any) -> Any:
        try:
            return log(api, **given | {"previous": False})
        except ApiException as error:  # a node that is gone took it along
            return f"no log: {error.reason}"

    def patient_status(api: Any, *given: Any) -> Any:
        for wait in WAITS:
            try:
                return status(api, *given)
            except ApiException as error:
                if error.status == 404:
                    return None  # for the executor, a job that failed
                if error.status < 500 and error.status != 429:
                    raise
                time.sleep(wait)
        return status(api, *given)

    CoreV1Api.read_namespaced_pod_log = only_log
    BatchV1Api.read_namespaced_job_status = patient_status
