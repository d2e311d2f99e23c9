"""The client of Girder's API, against a server that answers over HTTP."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from girder_dask.errors import CancelInterrupt, GirderError, SubmissionError
from girder_dask.http.client import ApiClient
from tests.support.local_girder import Answer, Peer, serving

SIGN_IN = "POST api_key/token"
GET = "GET job/1"
POST = "POST dask/job"
SECRET = "the-secret-key"


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving() as found:

        def sign_in(peer: Peer) -> Answer:
            if peer.bodies[-1] != f"key={SECRET}".encode():
                return 400, {"message": "Invalid API key."}
            return 200, {"authToken": {"token": f"token{peer.asked.count(SIGN_IN)}"}}

        found.answers |= {SIGN_IN: sign_in, GET: (200, {"n": 1}), POST: (200, {"n": 2})}
        yield found


def unknown_token(good: str) -> object:
    def check(peer: Peer) -> Answer:
        if peer.headers[-1].get("Girder-Token") != good:
            return 401, {"message": "You must be logged in."}
        return 200, {"n": 3}

    return check


def test_api_client_sends_its_token_in_a_header_only(peer: Peer) -> None:
    api = ApiClient(peer.url + "/", token=SECRET)
    assert api.request("GET", "job/1") == {"n": 1}
    assert api.request("POST", "dask/job", {"x": "é"}) == {"n": 2}
    assert [h["Girder-Token"] for h in peer.headers] == [SECRET] * 2
    assert peer.bodies[-1] == '{"x": "é"}'.encode()
    assert not any(SECRET in what for what in peer.asked)
    assert SECRET not in repr(api)


def test_api_client_exchanges_its_key_for_a_token_until_that_expires(peer: Peer) -> None:
    api = ApiClient(peer.url, api_key=SECRET)
    api.request("GET", "job/1")
    api.request("GET", "job/1")
    assert peer.asked == [SIGN_IN, GET, GET]
    peer.answers[POST] = unknown_token("token2")  # type: ignore[assignment]
    assert api.request("POST", "dask/job", {}, repeat=False) == {"n": 3}
    assert peer.asked[3:] == [POST, SIGN_IN, POST]


def test_api_client_signs_in_once_for_many_threads(peer: Peer) -> None:
    api = ApiClient(peer.url, api_key=SECRET)
    threads = [threading.Thread(target=api.request, args=("GET", "job/1")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert peer.asked.count(SIGN_IN) == 1
    assert peer.asked.count(GET) == 8


def test_api_client_with_an_unknown_token_raises(peer: Peer) -> None:
    peer.answers[GET] = unknown_token("other")  # type: ignore[assignment]
    with pytest.raises(GirderError, match="401 to GET job/1: You must be logged in") as caught:
        ApiClient(peer.url, token=SECRET).request("GET", "job/1")
    assert caught.value.status == 401
    assert SECRET not in str(caught.value)


def test_api_client_with_a_wrong_key_raises_without_showing_it(peer: Peer) -> None:
    with pytest.raises(GirderError, match=r"Invalid API key\.") as caught:
        ApiClient(peer.url, api_key="wrong-secret").request("GET", "job/1")
    assert "wrong-secret" not in str(caught.value)


def test_api_client_repeats_requests_until_girder_is_back(peer: Peer) -> None:
    answers: list[Answer] = [(503, b"starting"), (502, b""), (200, {"n": 9})]
    peer.answers[GET] = lambda _: answers.pop(0)
    assert ApiClient(peer.url, token="t").request("GET", "job/1") == {"n": 9}
    assert peer.asked == [GET] * 3


def test_api_client_sends_once_what_may_not_be_repeated(peer: Peer) -> None:
    peer.answers[POST] = (502, b"")
    with pytest.raises(GirderError, match="answered 502 to POST dask/job"):
        ApiClient(peer.url, token="t").request("POST", "dask/job", {}, repeat=False)
    assert peer.asked == [POST]


def test_api_client_does_not_send_twice_after_a_broken_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen = []

        def serve() -> None:
            server.settimeout(30)
            while True:
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    return
                with connection:
                    seen.append(connection.recv(65536))
                if b"stop" in seen[-1]:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        api = ApiClient(f"http://127.0.0.1:{server.getsockname()[1]}/api/v1", token="t")
        with pytest.raises(GirderError, match="does not answer"):
            api.request("POST", "dask/job", {}, repeat=False)
        with pytest.raises(GirderError):
            api.request("GET", "stop", retry_time_s=0)
        thread.join()
    assert sum(data.startswith(b"POST") for data in seen) == 1


def test_api_client_repeats_what_was_not_sent(free_port: int) -> None:
    api = ApiClient(f"http://127.0.0.1:{free_port}/api/v1", token="t")
    begun = time.monotonic()
    with pytest.raises(GirderError, match=f"does not answer at .*{free_port}.* refused"):
        api.request("POST", "dask/job", {}, repeat=False, retry_time_s=0.4)
    assert time.monotonic() - begun > 0.3


def test_api_client_does_not_repeat_internal_errors(peer: Peer) -> None:
    peer.answers[GET] = (500, {"message": "Internal error"})
    with pytest.raises(GirderError, match="Internal error") as caught:
        ApiClient(peer.url, token="t").request("GET", "job/1")
    assert caught.value.status == 500
    assert peer.asked == [GET]


def test_api_client_of_a_job_repeats_internal_errors(peer: Peer) -> None:
    answers: list[Answer] = [(500, {"message": "No database"}), (429, b""), (200, {"n": 9})]
    peer.answers[POST] = lambda _: answers.pop(0)
    api = ApiClient(peer.url, token="t", retry_time_s=20, retry_internal_errors=True)
    assert api.request("POST", "dask/job", {}) == {"n": 9}
    assert peer.asked.count(POST) == 3


def test_api_client_of_a_job_waits_for_a_girder_that_is_not_well(peer: Peer) -> None:
    answers: list[Answer] = [(500, {})] * 4 + [(200, {"n": 9})]
    peer.answers |= {GET: lambda _: answers.pop(0), "GET user/me": (500, {})}
    assert ApiClient(peer.url, token="t", retry_time_s=20, retry_internal_errors=True).request(
        "GET", "job/1"
    ) == {"n": 9}


def test_api_client_of_a_job_gives_up_on_a_request_that_stays_broken(peer: Peer) -> None:
    peer.answers |= {GET: (500, {"message": "Internal error"}), "GET user/me": (200, {})}
    with pytest.raises(GirderError, match="Internal error") as caught:
        ApiClient(peer.url, token="t", retry_time_s=60, retry_internal_errors=True).request(
            "GET", "job/1"
        )
    assert caught.value.status == 500
    assert peer.asked.count(GET) == 3


@pytest.mark.parametrize("endures", [True, False])
def test_api_client_lets_an_interruption_through_while_it_waits(
    free_port: int, endures: bool
) -> None:
    api = ApiClient(
        f"http://127.0.0.1:{free_port}/api/v1",
        token="t",
        retry_time_s=60,
        retry_internal_errors=endures,
    )
    ended: list[float] = []

    def wait() -> None:
        try:
            api.request("GET", "job/1")
        except CancelInterrupt:
            ended.append(time.monotonic())

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(1.8)  # a pause lasts for more than another second then
    asked = time.monotonic()
    exception = ctypes.py_object(CancelInterrupt)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), exception)
    thread.join(10)
    assert ended
    assert ended[0] - asked < 1


def test_api_client_does_not_send_its_token_after_a_redirect(peer: Peer) -> None:
    with serving() as other:
        peer.answers[GET] = (302, {})
        peer.locations = {GET: f"{other.url}/job/1"}
        with pytest.raises(GirderError, match=f"leads to {other.url}/job/1"):
            ApiClient(peer.url, token="t").request("GET", "job/1")
        assert other.asked == []


def test_api_client_raises_where_something_else_answers(peer: Peer) -> None:
    peer.answers[GET] = (200, b"<html>")
    with pytest.raises(GirderError, match="is not a Girder with the dask plugin"):
        ApiClient(peer.url, token="t").request("GET", "job/1")


def test_api_client_returns_none_for_null(peer: Peer) -> None:
    peer.answers["GET user/me"] = (200, None)
    assert ApiClient(peer.url, token="t").request("GET", "user/me") is None


def test_api_client_sends_nothing_that_is_not_json(peer: Peer) -> None:
    for value in (float("nan"), {1}, object()):
        with pytest.raises(SubmissionError, match=r"cannot be written as JSON.*Nothing was sent"):
            ApiClient(peer.url, token="t").request("POST", "dask/job", {"x": value})
    assert peer.asked == []


def test_api_client_takes_no_cookies(peer: Peer) -> None:
    peer.cookie = "girderToken=stale; Path=/"
    api = ApiClient(peer.url, token="t")
    api.request("GET", "job/1")
    api.request("GET", "job/1")
    assert "Cookie" not in peer.headers[-1]


def test_api_client_keeps_its_connection_open(peer: Peer) -> None:
    api = ApiClient(peer.url, token="t")
    for _ in range(3):
        api.request("GET", "job/1")
    assert len(set(peer.clients)) == 1


def test_api_client_opens_a_connection_of_its_own_in_a_fork(peer: Peer, tmp_path: Path) -> None:
    api = ApiClient(peer.url, token="t")
    api.request("GET", "job/1")
    child = os.fork()
    if child == 0:
        try:
            (tmp_path / "answer").write_text(str(api.request("GET", "job/1")))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    api.request("GET", "job/1")
    assert (tmp_path / "answer").read_text() == "{'n': 1}"
    assert peer.clients[0] == peer.clients[2] != peer.clients[1]
