"""girder_worker's serializer with labels of shared values."""

from __future__ import annotations

import collections
import datetime
import json
from typing import Any

import jsonpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("girder_worker", reason="girder_dask[celery] is not installed")

from girder_worker.docker.transforms import BindMountVolume, TemporaryVolume, VolumePath

from girder_dask.celery import serializer, shared_values


class Node:
    """An object that may refer to others."""

    def __init__(self, value: Any = None) -> None:
        self.value = value


def through(value: Any) -> Any:
    return serializer.decode(serializer.encode(value))


def test_what_is_not_shared_is_written_as_jsonpickle_does() -> None:
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
    value = ([1, "a"], {1: (2, {3}), "k": b"x"}, Node({"a": None}), moment)
    assert serializer.encode(value) == jsonpickle.encode(value, keys=True)


def test_shared_values_stay_one_object() -> None:
    shared, node = {"a": [1]}, Node([2])
    node.value.append(shared)
    opened = through(((shared, node), {"k": [node, shared], 5: node}, [shared["a"]]))
    (first, second), more, (inner,) = opened
    assert first == {"a": [1]}
    assert more["k"][0] is second is more[5]
    assert more["k"][1] is first is second.value[1]
    assert inner is first["a"]
    assert '"py/id"' not in serializer.encode([shared, shared, [node, node]])


def test_volumes_of_containers_stay_one_object() -> None:
    volume, temporary = BindMountVolume("/a", "/b"), TemporaryVolume()
    paths = [VolumePath("x", volume), VolumePath("y", temporary), VolumePath("z", temporary)]
    opened = through([volume, *paths, VolumePath("in"), VolumePath("out")])
    assert opened[1]._volume is opened[0]
    assert opened[2]._volume is opened[3]._volume
    assert opened[4]._volume is opened[5]._volume
    assert opened[0].host_path == "/a"


def test_what_contains_itself_keeps_the_numbers_of_jsonpickle() -> None:
    shared, node, ring = [1], Node(), []
    node.value = node
    ring.append(ring)
    first, second, opened, again, third = through([shared, [shared], node, ring, node])
    assert second[0] is first
    assert opened.value is opened is third
    assert again[0] is again


def test_values_in_keys_are_opened() -> None:
    shared = frozenset({1}), (2,)
    value = {(1, 2): [3], shared: [4], 5: shared}
    assert through([value, value]) == [value, value]


def test_subclasses_of_containers_are_opened() -> None:
    shared = [1]
    found = collections.defaultdict(list, {"a": shared})
    ordered = collections.OrderedDict(a=shared, b=shared)
    opened = through([found, ordered, shared, found])
    assert opened[0] is opened[3]
    assert opened[0]["missing"] == []
    assert opened[1]["a"] is opened[1]["b"] is opened[2] is opened[0]["a"]


def test_what_a_task_changes_does_not_change_the_calls_that_follow() -> None:
    shared = Node([1])
    body = ((shared, shared), {"k": shared}, {"chain": [{"args": (shared, shared)}]})
    written = shared_values.loads(serializer.encode(body))
    args, kwargs, embed = serializer.restore_body(written)
    assert args[0] is args[1] is kwargs["k"]
    first, second = embed["chain"][0]["args"]
    assert first is second is not args[0]
    assert first.value == [1]


def test_body_with_numbers_of_jsonpickle_is_opened_as_one() -> None:
    shared = Node([1])
    body = ((shared,), {}, {"chain": [{"args": (shared,)}]})
    written = json.loads(jsonpickle.encode(body, keys=True))
    args, _, embed = serializer.restore_body(written, in_parts=False)
    assert embed["chain"][0]["args"][0] is args[0]


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=3)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner)
)


@given(st.lists(values, min_size=1, max_size=5), st.data())
def test_any_sharing_is_kept(parts: list[Any], data: st.DataObject) -> None:
    picked = st.lists(st.sampled_from(range(len(parts))), min_size=1, max_size=8)
    places = data.draw(picked)
    value = [parts[n] for n in places]
    opened = through(value)
    assert opened == value
    ids = {n: {id(opened[i]) for i, m in enumerate(places) if m == n} for n in places}
    containers = {n for n in places if isinstance(parts[n], (list, dict))}
    assert all(len(ids[n]) == 1 for n in containers)
    text = serializer.encode(value)
    assert '"py/id"' not in text
    assert json.loads(text) is not None


def test_a_client_of_girder_is_no_shared_value(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(jsonpickle.handlers.BaseHandler):
        def flatten(self, _obj: Any, data: dict[str, Any]) -> dict[str, Any]:
            data["py/object"] = "girder_client.GirderClient"
            return data

    node = Node()
    monkeypatch.setitem(jsonpickle.handlers.registry._handlers, Node, Handler)
    client = {"py/object": "girder_client.GirderClient"}
    assert json.loads(serializer.encode([node, {"gc": node}])) == [client, {"gc": client}]
