"""What the executor for Kubernetes gets to hear where a cluster answers what it does not expect."""

import pods
import pytest

client = pytest.importorskip("kubernetes.client", reason="the extra cluster is not there")


@pytest.fixture
def answers(monkeypatch):
    """Answers still to come, the last of them again and again; the mended client asks for them."""
    left = []

    def answer(api, *given, **named):
        said = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(said, int):
            raise client.ApiException(said, reason="no")
        return said(named) if callable(said) else said

    monkeypatch.setattr(client.BatchV1Api, "read_namespaced_job_status", answer)
    monkeypatch.setattr(client.CoreV1Api, "read_namespaced_pod_log", answer)
    monkeypatch.setattr(pods, "WAITS", (0, 0))
    pods.mend()
    return left


def status():
    return client.BatchV1Api.read_namespaced_job_status(None, "a-job", "default")


def test_a_moment_without_answers_is_waited_for(answers):
    answers += [503, 429, "running"]
    assert status() == "running"
    answers[:] = [503]
    with pytest.raises(client.ApiException):
        status()


def test_a_job_that_was_deleted_is_one_that_failed(answers):
    answers.append(404)
    assert status() is None
    answers[:] = [403]
    with pytest.raises(client.ApiException):
        status()


def test_the_log_of_the_only_start_is_asked_for(answers):
    answers.append(lambda named: f"previous={named['previous']}")
    read = client.CoreV1Api.read_namespaced_pod_log
    assert read(None, name="a-pod", namespace="default", previous=True) == "previous=False"
    answers[:] = [404]
    assert read(None, name="a-pod", namespace="default", previous=True) == "no log: no"
