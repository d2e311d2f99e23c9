"""The backend of notebooks and running tasks, against a server that answers over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import dask
import pytest

from girder_dask.client.backend import get_backend
from girder_dask.client.rest_backend import RestBackend
from girder_dask.errors import (
    GirderError,
    PayloadTooLargeError,
    SchedulerError,
    SubmissionError,
)
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import MapParent, Submission
from girder_dask.standalone import ports
from girder_dask.worker.girder_access import child_jobs
from tests.support.local_girder import Peer, serving

SUBMIT = "POST dask/job"
STATES = "POST dask/job/states"
CALL = Submission(task="coins:count", payload=b"\x00call", title="Count")


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving() as found:
        found.answers[SUBMIT] = (200, {"jobs": [{"_id": "p"}, {"_id": "a"}]})
        yield found


@pytest.fixture
def backend(peer: Peer) -> Iterator[RestBackend]:
    opened = RestBackend(peer.url, token="the-secret", unpickles="own", retry_time_s=0)
    yield opened
    opened.close()


def sent(peer: Peer) -> Any:
    return json.loads(peer.bodies[-1])


def test_nobody_else_can_be_named_as_the_owner(peer: Peer, backend: RestBackend) -> None:
    with pytest.raises(SubmissionError, match=r"pkg:f was started with girder_user="):
        backend.submit([Submission(task="pkg:f", payload=b"j", user={"_id": "u"})])
    with pytest.raises(SubmissionError, match=r"All was started with girder_user="):
        backend.submit([CALL], MapParent(title="All", user={"_id": "u"}))
    assert not peer.bodies


def test_a_submission_travels_without_its_user(peer: Peer, backend: RestBackend) -> None:
    assert backend.submit([CALL], MapParent(title="All")) == [{"_id": "p"}, {"_id": "a"}]
    body = sent(peer)
    assert body["group"]["title"] == "All"
    (wire,) = body["submissions"]
    assert wire["payload"] == {"b64": "AGNhbGw="}
    assert "user" not in wire
    backend.submit([CALL])
    assert sent(peer)["group"] is None


def test_a_refusal_is_an_error_of_the_submission(peer: Peer, backend: RestBackend) -> None:
    peer.answers[SUBMIT] = (403, {"message": "You may not start coins:count. Ask ada."})
    with pytest.raises(SubmissionError, match=r"Ask ada\. No job was created\.") as caught:
        backend.submit([CALL])
    assert caught.value.task == "coins:count"


def test_calls_that_are_too_large_together_are_not_sent(peer: Peer, backend: RestBackend) -> None:
    calls = [Submission(task="pkg:f", payload=b"j" + b" " * (8 << 20)) for _ in range(6)]
    with pytest.raises(PayloadTooLargeError, match=r"6 calls of pkg:f .* in several parts"):
        backend.submit(calls)
    assert not peer.bodies


def test_a_failure_leaves_open_whether_there_is_a_job(peer: Peer, backend: RestBackend) -> None:
    peer.answers[SUBMIT] = (500, {"message": "Internal error"})
    with pytest.raises(GirderError, match="Internal error Whether jobs of coins:count were"):
        backend.submit([CALL])
    assert peer.asked == [SUBMIT]


def test_a_job_submits_again_by_the_same_key(peer: Peer) -> None:
    answers: list[Any] = [(500, {}), (504, b""), (200, {"jobs": [{"_id": "a"}]})]
    peer.answers[SUBMIT] = lambda _: answers.pop(0)
    backend = RestBackend(peer.url, token="t", retry_time_s=20, is_durable=True)
    assert backend.submit([CALL]) == [{"_id": "a"}]
    keys = [json.loads(body)["key"] for body in peer.bodies if body]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    peer.answers[SUBMIT] = (200, {"jobs": [{"_id": "b"}]})
    backend.submit([CALL])
    assert sent(peer)["key"] not in keys


def test_a_job_waits_for_the_states_of_others(peer: Peer) -> None:
    answers: list[Any] = [(500, {}), (200, {"jobs": [{"_id": "a"}]})]
    peer.answers[STATES] = lambda _: answers.pop(0)
    with dask.config.set({"girder.worker.retry-time": "20 s"}), child_jobs(peer.url, "t", None):
        assert get_backend().load_jobs(["a"]) == [{"_id": "a"}]


def test_outside_of_jobs_a_submission_is_sent_once(peer: Peer, backend: RestBackend) -> None:
    peer.answers[SUBMIT] = (504, b"")
    with pytest.raises(GirderError, match="is not known"):
        backend.submit([CALL])
    assert peer.asked == [SUBMIT]
    assert "key" not in sent(peer)


def test_a_girder_that_is_not_there_has_no_job() -> None:
    port = ports.choose(None)
    backend = RestBackend(f"http://127.0.0.1:{port}/api/v1", token="t", retry_time_s=0)
    with pytest.raises(GirderError, match="does not answer") as caught:
        backend.submit([CALL])
    assert caught.value.status is None


def test_states_are_asked_for_in_parts(peer: Peer, backend: RestBackend) -> None:
    def states(peer: Peer) -> Any:
        return 200, {"jobs": [{"_id": i} for i in sent(peer)["ids"]]}

    peer.answers[STATES] = states
    ids = [str(n) for n in range(2500)]
    assert [job["_id"] for job in backend.load_jobs(ids)] == ids
    assert len(peer.asked) == 3
    assert backend.load_jobs([]) == []


def test_a_log_is_left_out_unless_it_is_wanted(peer: Peer, backend: RestBackend) -> None:
    peer.answers["GET job/a"] = (200, {"_id": "a", "log": ["x"]})
    assert backend.load_job("a") == {"_id": "a"}
    assert backend.load_job("a", log=True)["log"] == ["x"]


def test_an_id_cannot_lead_elsewhere(peer: Peer, backend: RestBackend) -> None:
    with pytest.raises(GirderError):
        backend.load_job("../user/me?x=")
    assert peer.asked == ["GET job/..%2Fuser%2Fme%3Fx%3D"]


def test_a_result_is_read(peer: Peer, backend: RestBackend) -> None:
    peer.answers["GET dask/job/a/result"] = (
        200,
        {"status": 4, "value": None, "error": "E: x", "exception": {"b64": "eA=="}},
    )
    result = backend.load_result("a")
    assert (result.value, result.error, result.exception) == (None, "E: x", b"x")
    assert result.status == JobStatus.ERROR


def test_a_job_is_canceled(peer: Peer, backend: RestBackend) -> None:
    peer.answers["PUT dask/job/a/cancel"] = (200, {})
    backend.cancel("a")
    assert peer.asked == ["PUT dask/job/a/cancel"]


def test_only_what_own_jobs_return_is_unpickled(peer: Peer, backend: RestBackend) -> None:
    peer.answers["GET user/me"] = (200, {"_id": "me", "login": "ada"})
    assert backend.unpickles({"_id": "a", "userId": "me"})
    assert not backend.unpickles({"_id": "a", "userId": "other"})
    peer.answers[STATES] = (200, {"jobs": [{"_id": "a", "userId": "me"}]})
    assert backend.unpickles({"_id": "a"})
    peer.answers[STATES] = (200, {"jobs": []})
    assert not backend.unpickles({"_id": "a"})
    assert peer.asked.count("GET user/me") == 1


def test_nobody_owns_the_jobs_of_nobody(peer: Peer, backend: RestBackend) -> None:
    peer.answers |= {"GET user/me": (200, None), "GET token/current": (200, None)}
    peer.answers[STATES] = (200, {"jobs": [{"_id": "a", "userId": None}]})
    assert not backend.unpickles({"_id": "a", "userId": None})
    assert not backend.unpickles({"_id": "a", "userId": "u"})


def test_a_token_of_little_scope_still_says_whose_it_is(peer: Peer, backend: RestBackend) -> None:
    peer.answers |= {"GET user/me": (200, None), "GET token/current": (200, {"userId": "me"})}
    assert backend.user() == {"_id": "me"}
    assert backend.unpickles({"_id": "a", "userId": "me"})


@pytest.mark.parametrize("always", [True, False])
def test_a_running_task_decides_for_all_jobs(peer: Peer, always: bool) -> None:
    backend = RestBackend(peer.url, token="t", unpickles=always)
    assert backend.unpickles({"_id": "a"}) is always
    assert peer.asked == []


def test_no_scheduler_says_what_to_do(peer: Peer, backend: RestBackend) -> None:
    with pytest.raises(SchedulerError, match=r"scheduler='tcp://dask\.example\.org:8786'"):
        backend.dask_client()
    peer.answers["GET dask/status"] = (200, {"scheduler": {"address": "tcp://10.0.0.1:1"}})
    with pytest.raises(SchedulerError, match=r"scheduler='tcp://10\.0\.0\.1:1'.*Girder reaches"):
        backend.dask_client()
    assert backend.scheduler_address() is None


def test_a_scheduler_that_is_not_there_is_an_error_at_once(peer: Peer) -> None:
    address = f"tcp://127.0.0.1:{ports.choose(None)}"
    backend = RestBackend(peer.url, token="t", dask_address=address)
    assert backend.scheduler_address() == address
    with pytest.raises(SchedulerError, match=f"{address} does not answer .*refused"):
        backend.dask_client()


def test_a_client_is_asked_for_once_and_left_open(peer: Peer) -> None:
    class Client:
        scheduler = None
        closed = 0

        def close(self) -> None:
            self.closed += 1

    made: list[Client] = []

    def client() -> Any:
        made.append(Client())
        return made[-1]

    backend = RestBackend(peer.url, token="t", dask_client=client)
    assert backend.dask_client() is backend.dask_client()
    backend.close()
    assert len(made) == 1
    assert made[0].closed == 0, "it is not ours"


def test_nothing_shows_the_token(backend: RestBackend) -> None:
    assert "the-secret" not in repr(backend)
    assert "the-secret" not in repr(backend._api)
