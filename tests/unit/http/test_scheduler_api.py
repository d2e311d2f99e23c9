"""The scheduler's client, against a server that answers over HTTP."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from girder_dask import __version__
from girder_dask.errors import GirderDaskError, GirderError
from girder_dask.http.scheduler_api import SchedulerApi
from girder_dask.protocol.messages import JobUpdate
from girder_dask.protocol.wire_version import WIRE_VERSION
from girder_dask.standalone import ports
from tests.support.local_girder import Answer, Peer, serving

PING = "GET dask/ping"
CREDENTIAL = "GET dask/credential"
SIGN_IN = "POST api_key/token"
UPDATES = "POST dask/job/updates"
CLAIM = "POST dask/job/claim"
STATES = "POST dask/job/states"


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving() as found:
        valid: set[str] = set()

        def sign_in(peer: Peer) -> Answer:
            if peer.bodies[-1] != b"key=the-key":
                return 400, {"message": "Invalid API key.", "type": "rest"}
            valid.add(token := f"token{peer.asked.count(SIGN_IN)}")
            return 200, {"authToken": {"token": token}}

        def signed(answer: object) -> object:
            def check(peer: Peer) -> Answer:
                if peer.headers[-1].get("Girder-Token") not in valid:
                    return 401, {"message": "You must be logged in."}
                return 200, answer

            return check

        found.answers |= {
            PING: (200, {"plugin": "0.1"}),
            SIGN_IN: sign_in,
            CREDENTIAL: signed({"ok": True}),
            UPDATES: signed({"stale": ["a"], "gone": [], "cancel": []}),
            CLAIM: signed({"specs": [{"id": "a", "payload": {"b64": "eA=="}}], "cancel": ["b"]}),
        }
        found.valid = valid  # type: ignore[attr-defined]
        yield found


@pytest.fixture
def api(peer: Peer) -> Iterator[SchedulerApi]:
    opened = SchedulerApi(peer.url, "the-key", timeout_s=10)
    yield opened
    opened.close()


def test_scheduler_api_needs_no_key_for_what_is_public(peer: Peer) -> None:
    api = SchedulerApi(peer.url + "/")
    assert api.ping() == {"plugin": "0.1"}
    api.close()
    assert peer.asked == [PING]
    assert peer.headers[0]["User-Agent"] == f"girder_dask/{__version__}"


def test_scheduler_api_signs_in_once(peer: Peer, api: SchedulerApi) -> None:
    api.check_credential()
    api.check_credential()
    assert peer.asked == [SIGN_IN, CREDENTIAL, CREDENTIAL]
    assert peer.headers[-1]["Girder-Token"] == "token1"


def test_scheduler_api_signs_in_again_when_its_token_is_unknown(
    peer: Peer, api: SchedulerApi
) -> None:
    api.check_credential()
    peer.valid.clear()  # type: ignore[attr-defined]
    api.check_credential()
    assert peer.asked[2:] == [CREDENTIAL, SIGN_IN, CREDENTIAL]
    assert "Girder-Token" not in peer.headers[3], "an old token must not spoil the new sign-in"
    assert peer.headers[-1]["Girder-Token"] == "token2"


def test_scheduler_api_signs_in_again_only_once(peer: Peer, api: SchedulerApi) -> None:
    peer.answers[CREDENTIAL] = (401, {"message": "You must be logged in."})
    with pytest.raises(GirderError, match="You must be logged in") as caught:
        api.check_credential()
    assert caught.value.status == 401
    assert peer.asked == [SIGN_IN, CREDENTIAL, SIGN_IN, CREDENTIAL]


def test_scheduler_api_does_not_show_a_refused_key(peer: Peer) -> None:
    api = SchedulerApi(peer.url, "revoked")
    with pytest.raises(GirderError, match=r"400 to POST api_key/token: Invalid API key") as caught:
        api.check_credential()
    api.close()
    assert "revoked" not in str(caught.value)


def test_scheduler_api_reads_its_key_again_when_girder_refuses_its_token(peer: Peer) -> None:
    keys = ["the-key", "revoked", "the-key"]
    api = SchedulerApi(peer.url, lambda: keys.pop(0))
    api.check_credential()
    peer.valid.clear()  # type: ignore[attr-defined]
    with pytest.raises(GirderError, match="Invalid API key"):
        api.check_credential()
    assert api.check_credential() == {"ok": True}
    api.close()
    assert keys == []
    assert peer.asked.count(SIGN_IN) == 3


def test_scheduler_api_whose_key_cannot_be_read_raises_and_makes_no_request(peer: Peer) -> None:
    def read() -> str:
        raise GirderDaskError("The scheduler's credential cannot be read.")

    with pytest.raises(GirderError, match=r"^The scheduler's credential cannot be read\.$") as no:
        SchedulerApi(peer.url, read).claim("s", 1)
    assert no.value.status == 401
    assert peer.asked == []


def test_scheduler_api_without_a_key_makes_no_request(peer: Peer) -> None:
    with pytest.raises(GirderError, match="girder-dask credential") as caught:
        SchedulerApi(peer.url).claim("s", 1)
    assert caught.value.status == 401
    assert peer.asked == []


def test_update_sends_bytes(peer: Peer, api: SchedulerApi) -> None:
    update = JobUpdate(id="a", attempt=1, sequence=2, log="ü", result=b"\x00\xff")
    verdicts = api.update("s1", [update.to_wire()], [("b", 3)])
    assert verdicts == {"stale": ["a"], "gone": [], "cancel": []}
    body = json.loads(peer.bodies[-1])
    assert body["scheduler"] == "s1"
    assert body["updates"][0]["result"] == {"b64": "AP8="}
    assert body["updates"][0]["log"] == "ü"
    assert body["received"] == [["b", 3]]


def test_claim_returns_bytes(peer: Peer, api: SchedulerApi) -> None:
    claimed = api.claim("s1", 5, "c", [("d", 2, 7)])
    assert claimed == {"specs": [{"id": "a", "payload": b"x"}], "cancel": ["b"]}
    assert json.loads(peer.bodies[-1]) == {
        "scheduler": "s1",
        "limit": 5,
        "after": "c",
        "lacking": [["d", 2, 7]],
        "version": WIRE_VERSION,
        "lease": None,
    }


def test_states_asks_by_id(peer: Peer, api: SchedulerApi) -> None:
    peer.answers[STATES] = (200, {"jobs": [{"_id": "a", "status": 3, "title": "Count"}]})
    assert api.states(["a", "gone"]) == {"a": {"_id": "a", "status": 3, "title": "Count"}}
    assert json.loads(peer.bodies[-1]) == {"ids": ["a", "gone"]}


@pytest.mark.parametrize("answer", [{}, {"jobs": None}, {"jobs": [{"status": 3}]}, {"jobs": [1]}])
def test_states_raises_for_another_answer(peer: Peer, api: SchedulerApi, answer: object) -> None:
    """Else a job would take its inputs for deleted."""
    peer.answers[STATES] = (200, answer)
    with pytest.raises(GirderError, match="returned no job states"):
        api.states(["a"])


@pytest.mark.parametrize(
    ("answer", "status", "said"),
    [
        ((403, {"message": "Write access denied."}), 403, "403 to GET dask/ping: Write access"),
        ((500, {"message": "A bug", "trace": ["x"]}), 500, "500 to GET dask/ping: A bug"),
        ((502, b"<html>no</html>"), 502, "502 to GET dask/ping: Bad Gateway"),
        ((500, ["a list"]), 500, "500 to GET dask/ping: Internal Server Error"),
        ((500, {"type": "rest"}), 500, "500 to GET dask/ping: Internal Server Error"),
    ],
)
def test_scheduler_api_raises_refusals_as_sentences(
    peer: Peer, api: SchedulerApi, answer: Answer, status: int, said: str
) -> None:
    peer.answers[PING] = answer
    with pytest.raises(GirderError) as caught:
        api.ping()
    assert caught.value.status == status
    assert said in str(caught.value)
    assert peer.url in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b"", b"[1]", b'"text"'])
@pytest.mark.parametrize("what", [PING, SIGN_IN, CREDENTIAL, UPDATES, CLAIM])
def test_scheduler_api_raises_where_something_else_answers(
    peer: Peer, api: SchedulerApi, what: str, body: bytes
) -> None:
    """As a proxy gives it. Whoever delivers updates tries again after a GirderError only."""
    peer.answers[what] = (200, body)
    call = {PING: api.ping, UPDATES: lambda: api.update("s", []), CLAIM: lambda: api.claim("s", 1)}
    with pytest.raises(GirderError) as caught:
        call.get(what, api.check_credential)()
    assert peer.url in str(caught.value)


def test_scheduler_api_signs_in_again_after_a_failed_sign_in(peer: Peer, api: SchedulerApi) -> None:
    good = peer.answers[SIGN_IN]
    peer.answers[SIGN_IN] = (503, {"message": "Starting"})
    with pytest.raises(GirderError, match="Starting"):
        api.check_credential()
    peer.answers[SIGN_IN] = good
    assert api.check_credential() == {"ok": True}


def unused_port() -> int:
    return ports.choose(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_scheduler_api_names_a_girder_that_it_cannot_reach(host: str) -> None:
    url = f"http://{host}:{unused_port()}/api/v1"
    with pytest.raises(GirderError) as caught:
        SchedulerApi(url).ping()
    message = str(caught.value)
    assert message.startswith(f"Girder does not answer at {url} (")
    assert " at 0x" not in message
    assert "<" not in message
    assert len(message) < 250
    assert caught.value.status is None
    if host == "127.0.0.1":
        assert "Connection refused" in message


def test_scheduler_api_names_a_girder_that_hangs_up_or_is_slow() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/api/v1"
        with pytest.raises(GirderError, match=r"does not answer.*timed out") as slow:
            SchedulerApi(url, timeout_s=0.1).ping()
        assert " at 0x" not in str(slow.value)
        server.accept()[0].close()

        def hang_up() -> None:
            server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(GirderError, match="does not answer") as gone:
            SchedulerApi(url, timeout_s=10).ping()
        thread.join()
    assert " at 0x" not in str(gone.value)


@pytest.mark.parametrize("url", ["girder.example.org/api/v1", "", "http://"])
def test_scheduler_api_raises_for_an_invalid_address(url: str) -> None:
    with pytest.raises(GirderError, match="does not answer"):
        SchedulerApi(url).ping()


def test_scheduler_api_keeps_its_connection_open(peer: Peer, api: SchedulerApi) -> None:
    for _ in range(3):
        api.check_credential()
    assert len(peer.asked) == 4
    assert len(set(peer.clients)) == 1
