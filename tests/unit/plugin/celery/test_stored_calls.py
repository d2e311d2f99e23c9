"""What a job may send of the calls that Girder has stored with its message."""

from __future__ import annotations

import json
import time
import types
from typing import Any

import pytest
from bson import ObjectId
from msgspec.structs import replace

pytest.importorskip("girder_worker", reason="girder_dask[celery] is not installed")

from girder_dask.celery import message_body
from girder_dask.celery.following_calls import following_calls
from girder_dask.plugin.celery import stored_calls
from girder_dask.plugin.celery.stored_calls import StoredCalls, names_local_queue, of_message
from girder_dask.plugin.store import job_records
from girder_dask.protocol.celery_message import CeleryMessage
from girder_dask.protocol.payload import pack_message

RUN = "girder_worker.docker.tasks.docker_run"


def message(args: Any, kwargs: Any = None, embed: Any = None, **fields: Any) -> CeleryMessage:
    body = json.dumps([args, kwargs or {}, embed or {}])
    return CeleryMessage(id="1", body=body, **{"task": "a.b", "queue": "celery", **fields})


def stored(*signatures: Any, args: Any = ()) -> StoredCalls:
    return of_message(message(list(args), embed={"chain": list(signatures)}), trusted=True)


def may(calls: StoredCalls, *args: Any, **fields: Any) -> bool:
    return calls.continues(message([], task=RUN, **fields), list(args), {})


def call(*args: Any, immutable: bool = False, **options: Any) -> dict[str, Any]:
    return {"task": RUN, "args": list(args), "immutable": immutable, "options": options}


def test_continues_takes_one_argument_before_those_of_a_mutable_call_alone() -> None:
    mutable, immutable = stored(call("good")), stored(call("good", immutable=True))
    assert may(mutable, "good")
    assert may(mutable, "result", "good")
    assert not may(mutable, "result", "other", "good")
    assert may(immutable, "good")
    assert not may(immutable, "evil", "good")
    for args in (3, None, {"a": 1}, "text"):
        assert not mutable.continues(message([], task=RUN), args, {})


def test_continues_keeps_the_queue_local_to_the_calls_for_it() -> None:
    calls = stored(call("here"), call("there", queue="local"))
    assert not may(calls, "here", queue="local")
    assert may(calls, "there", queue="local")
    assert may(calls, "result", "there", queue="local")
    known = stored({"task": "girder.tasks.copyFolderTask", "args": []})
    assert known.continues(message([], task="girder.tasks.copyFolderTask", queue="local"), [], {})
    assert names_local_queue("girder.tasks.copyFolderTask")


def test_calls_that_differ_in_their_rights_alone_keep_them_apart() -> None:
    calls = stored(call("good"), call("good", immutable=True, queue="local"))
    assert may(calls, "result", "good")
    assert may(calls, "good", queue="local")
    assert not may(calls, "evil", "good", queue="local")


def test_load_reads_the_message_of_a_job_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that starts many others would have Girder read a large message for each."""
    loaded: list[ObjectId] = []
    body = message([], embed={"chain": [call("good")]})
    spec = types.SimpleNamespace(payload=pack_message(body, limit=10_000), trusted=True)

    def load_spec(job_id: ObjectId) -> Any:
        loaded.append(job_id)
        return None if job_id == ended else spec

    ended, *jobs = (ObjectId() for _ in range(4))
    monkeypatch.setattr(job_records, "load_spec", load_spec)
    monkeypatch.setattr(stored_calls, "_MAX_JOBS", 2)
    monkeypatch.setattr(stored_calls, "_cache", stored_calls._Cache())
    first, second, third = jobs
    for job_id in (first, first, second, first, third, first):
        assert may(stored_calls.load(job_id), "good")
    assert loaded == [first, second, third]
    assert may(stored_calls.load(second), "good")
    assert loaded == [first, second, third, second]
    for _ in range(2):
        assert not stored_calls.load(ended).calls
    assert loaded[-2:] == [ended, ended]


def test_a_mapping_among_the_arguments_is_no_stored_call() -> None:
    data = {"task": RUN, "args": ["evil"]}
    assert not may(stored(args=[data]), "evil")
    assert not may(stored({"task": "a.b", "args": [data], "kwargs": {"tasks": [data]}}), "evil")


def test_has_gives_a_call_no_more_rights_than_it_was_stored_with() -> None:
    calls = stored(call("good", immutable=True))
    asked = [
        call("good", immutable=True),
        call("good"),
        call("good", immutable=True, queue="local"),
        call("evil", immutable=True),
    ]
    found = [next(following_calls("a.b", [[], {}, {"chain": [each]}])) for each in asked]
    assert [not calls.lacking([each], 10**9) for each in found] == [True, False, False, False]


def test_reading_and_comparing_nested_calls_costs_what_their_length_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call that is nested in others is not read once for each of them."""
    digested: list[int] = []
    digest = stored_calls._digest
    monkeypatch.setattr(
        stored_calls, "_digest", lambda text: digested.append(len(text)) or digest(text)
    )
    nested: Any = call("x" * 100)
    for _ in range(80):
        group = {"task": "celery.group", "kwargs": {"tasks": [nested, call("y" * 100)]}}
        nested = call("x" * 100, link=[group])
    sent = message([], embed={"chain": [nested]})
    calls = of_message(sent, trusted=False)
    assert len(calls.calls) == 2
    assert sum(digested) < len(sent.body)
    digested.clear()
    found = list(following_calls(sent.task, json.loads(sent.body)))
    assert len(found) == 161
    assert all(not calls.lacking([each], 10**9) for each in found)
    assert sum(digested) < len(sent.body)


def test_parts_of_a_call_in_chunks_are_stored_calls() -> None:
    pairs = [[1, 2], [3, 4], [5, 6]]
    kwargs = {"task": {"task": "a.add", "options": {}}, "it": pairs, "n": 2}
    calls = of_message(message([], kwargs, task="celery.chunks"), trusted=True)
    part = {"task": {"task": "a.add", "options": {"task_id": "1"}}, "it": pairs[:2]}
    starmap = message([], task="celery.starmap")
    assert calls.continues(starmap, [], part)
    signature = {"task": "a.add", "options": {"task_id": "1" * 36, "reply_to": "2" * 36}}
    assert calls.continues(starmap, [], {**part, "task": signature})
    assert not calls.continues(starmap, [], {**part, "task": {"task": "a.evil"}})
    assert not calls.continues(starmap, [], {**part, "it": pairs})


def test_a_message_that_is_not_trusted_brings_no_objects() -> None:
    value = {"py/object": "a.B"}
    sent = message([value], embed={"chain": [call("good")]})
    assert of_message(sent, trusted=True).objects == {json.dumps(value)}
    assert of_message(sent, trusted=False).objects == frozenset()
    assert of_message(message([value]), trusted=True).objects == frozenset()  # no call follows


@pytest.mark.parametrize("where", ["own arguments", "arguments of the call"])
def test_reading_a_large_message_ends_soon(caplog: pytest.LogCaptureFixture, where: str) -> None:
    many = [[]] * 1_200_000
    given = {"own arguments": (many, "good"), "arguments of the call": ([], many)}[where]
    sent = message([given[0]], embed={"chain": [call(given[1])]})
    start = time.process_time()
    assert not of_message(sent, trusted=True).calls
    assert time.process_time() - start < 1
    assert "has more than 1000000 lists and mappings" in caplog.text
    most = message([many[:700_000]], embed={"chain": [call("good"), call(many[:200_000])]})
    assert len(of_message(most, trusted=True).calls) == 1


def hook(name: str) -> dict[str, Any]:
    return {"py/object": "a.Upload", "name": name}


def test_continues_takes_the_transforms_of_the_result_of_that_call_alone() -> None:
    name = "girder_result_hooks"
    by_kwargs = {**call("kwargs"), "kwargs": {name: [hook("of kwargs")]}}
    by_options = call("options", **{name: [hook("of options"), hook("second")]})
    by_headers = call("headers", headers={name: {"py/tuple": [hook("of headers")]}})
    own = message([call("own")], embed={"chain": [by_kwargs, by_options, call("none")]})
    calls = of_message(replace(own, headers={name: [hook("of the job")]}), trusted=True)

    def allowed(which: str, *hooks: Any, calls: StoredCalls = calls) -> bool:
        return may(calls, which, headers={name: list(hooks)} if hooks else {})

    assert allowed("kwargs", hook("of kwargs"))
    assert allowed("options", hook("of options"), hook("second"))
    for which in ("kwargs", "options", "none"):
        assert allowed(which)
        for given in ([hook("of the job")], [hook("second")], [hook("of kwargs")] * 2):
            assert not allowed(which, *given)
    assert not allowed("options", hook("of kwargs"))
    assert not allowed("options", "data", hook("of options"), hook("second"))
    assert allowed("options", "data")
    assert allowed("headers", hook("of headers"), calls=stored(by_headers)) is False
    listed = call("headers", headers={name: [hook("of headers")]})
    assert allowed("headers", hook("of headers"), calls=stored(listed))


def test_has_compares_the_objects_among_the_options() -> None:
    given = {"girder_result_hooks": [hook("a")]}
    calls = stored(call("one", **given), call("two", headers=given), call("three", task_id="1"))
    asked = [
        (call("one", **given, task_id="5"), True),
        (call("two", headers=given, root_id="5"), True),
        (call("three", reply_to="x"), True),
        (call("one"), False),
        (call("one", girder_result_hooks=[hook("b")]), False),
        (call("two", headers={"girder_result_hooks": [hook("b")]}), False),
        (call("three", **given), False),
        (call("three", headers={"x": hook("a")}), False),
        (call("three", other=hook("a")), False),
    ]
    for signature, expected in asked:
        (found,) = following_calls("a.b", [[], {}, {"chain": [signature]}])
        assert (calls.lacking([found], 10**9) == []) == expected, signature


def test_continues_compares_what_references_lead_to() -> None:
    def labelled(value: Any) -> dict[str, Any]:
        return {"py/dask-shared": 5, "value": value}

    same, volume = {"py/dask-same": 5}, {"py/object": "a.Volume", "path": "/good"}
    first = {"task": RUN, "args": [labelled(volume), [same]], "immutable": True}
    calls = stored(first, {"task": RUN, "args": [[1], same], "immutable": True})
    sent = [
        ([labelled(volume), [same]], True),
        ([labelled([1]), {**volume}], True),
        ([[1], volume], True),
        ([volume, [volume]], False),
        ([labelled({**volume, "path": "/"}), [same]], False),
        ([labelled(volume), same], False),
        ([{"py/id": 3}, [volume]], False),
    ]
    for args, expected in sent:
        given = message(args, task=RUN)
        assert calls.continues(given, *message_body.arguments(given)) == expected, args
    assert calls.objects == {json.dumps(volume, sort_keys=True)}


def test_continues_takes_no_tuple_of_a_mapping() -> None:
    calls = stored(call("good"))
    for args in ({"py/tuple": {"py/tuple": ["good"]}}, {"py/tuple": {"good": 1}}):
        given = CeleryMessage("1", RUN, "celery", json.dumps({"py/tuple": [args, {}, {}]}))
        assert not calls.continues(given, *message_body.arguments(given))
    given = CeleryMessage("1", RUN, "celery", json.dumps([{"py/tuple": ["good"]}, {}, {}]))
    assert calls.continues(given, *message_body.arguments(given))


def test_a_value_that_many_calls_share_is_not_compared_with_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    large = {"py/dask-shared": 1, "value": ["x" * 1_000_000]}
    signatures = [call(large), *(call({"py/dask-same": 1}, n) for n in range(10_000))]
    sent = message([], embed={"chain": signatures})
    calls = of_message(sent, trusted=True)
    assert 1 <= len(calls.calls) < 10
    assert "share so much" in caplog.text


def test_load_keeps_calls_up_to_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[ObjectId] = []
    body = message([], embed={"chain": [call({"py/object": "a.B", "x": "x" * 100_000})]})
    spec = types.SimpleNamespace(payload=pack_message(body, limit=1_000_000), trusted=True)
    monkeypatch.setattr(job_records, "load_spec", lambda job_id: loaded.append(job_id) or spec)
    monkeypatch.setattr(stored_calls, "_MAX_KEPT_BYTES", 250_000)
    monkeypatch.setattr(stored_calls, "_cache", stored_calls._Cache())
    first, second, third = (ObjectId() for _ in range(3))
    for job_id in (first, second, first, third, first, second):
        assert stored_calls.load(job_id).nbytes > 100_000
    assert loaded == [first, second, third, second]
