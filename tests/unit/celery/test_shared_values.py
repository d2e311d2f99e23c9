"""References to values that occur in a message more than once."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from girder_dask.celery import message_body
from girder_dask.celery.following_calls import following_calls
from girder_dask.celery.shared_values import as_text, loads, resolve, shared_in
from girder_dask.errors import ArgumentError
from girder_dask.protocol.celery_message import CeleryMessage


def shared(label: Any, value: Any) -> dict[str, Any]:
    return {"py/dask-shared": label, "value": value}


def same(label: Any) -> dict[str, Any]:
    return {"py/dask-same": label}


def test_resolve_makes_one_object_of_what_is_shared() -> None:
    inner, outer, again = resolve([shared(3, {"a": 1}), shared(1, [same(3), same(3)]), same(1)])
    assert outer is again
    assert outer == [{"a": 1}, {"a": 1}]
    assert outer[0] is outer[1] is inner
    assert set(shared_in([inner, outer, again])) == {id(inner), id(outer)}


@pytest.mark.parametrize(
    "value",
    [
        [same(0)],
        [same(0), shared(0, [])],
        [shared(0, [same(0)])],
        [shared(0, [shared(0, [])])],
        [shared(0, [1]), shared(0, [2]), same(0)],
        [shared(True, [1]), same(True)],
        [shared("0", [1]), same("0")],
        [shared([], [1])],
        [shared(0, "text"), same(0)],
        [shared(0, [1]), {**same(0), "x": 1}],
        [{**shared(0, [1]), "x": 1}],
        [{"py/dask-shared": 0}],
        [{**shared(0, [1]), **same(0)}],
    ],
)
def test_resolve_refuses_what_leads_to_no_one_value(value: Any) -> None:
    with pytest.raises(ArgumentError, match="does not lead to one value"):
        resolve(value)


@pytest.mark.parametrize("written", ["py/dask-same", "py\\/dask-same", "py\\u002fd\\u0061sk-same"])
def test_loads_resolves_tags_however_they_are_written(written: str) -> None:
    first, second = loads(f'[{json.dumps(shared(0, [1]))}, {{"{written}": 0}}]')
    assert first is second


def test_as_text_is_the_same_wherever_else_a_value_is_shared() -> None:
    value = resolve([shared(9, [1]), {"b": same(9), "a": [same(9)]}])
    apart = resolve({"a": [shared(0, [1])], "b": same(0)})
    assert as_text(value[1]) == as_text(apart)
    assert as_text(value[0]) == as_text([1])
    assert as_text(apart) != as_text({"a": [[1]], "b": [1]})
    tuples = resolve([shared(0, [{"py/tuple": [1]}]), same(0)])
    assert as_text(tuples) == as_text(resolve([shared(0, [[1]]), same(0)]))


def nested(levels: int) -> list[Any]:
    """Return values each of which has the one before twice."""
    return [shared(0, ["x"]), *(shared(n, [same(n - 1)] * 2) for n in range(1, levels))]


def test_reading_shared_values_costs_what_their_length_does() -> None:
    calls = [shared(100, {"task": "a.b", "args": []})]
    for n in range(101, 160):
        group = {"task": "celery.group", "kwargs": {"tasks": [same(n - 1), same(n - 1)]}}
        calls.append(shared(n, group))
    body = [nested(90), {}, {"chain": calls}]
    message = CeleryMessage("1", "a.b", "celery", json.dumps(body))
    start = time.process_time()
    read = message_body.check(message)
    assert len(list(following_calls("a.b", read, strict=True))) == 1
    assert len(message_body.message_text(message)) < 2 * len(message.body)
    assert not message_body.tokens(message)
    unclear = {"task": read[0]}
    with pytest.raises(ArgumentError, match="cannot be checked") as error:
        list(following_calls("a.b", [[], {}, {"chain": unclear}], strict=True))
    assert len(str(error.value)) < 400
    bad = {"py/object": read[0]}
    assert "an object of" in str(message_body.find_code(bad, "body"))
    assert time.process_time() - start < 1


def test_check_ends_where_a_reference_leads_nowhere() -> None:
    message = CeleryMessage("1", "a.b", "celery", json.dumps([[same(0)], {}, {}]))
    assert message_body.load(message) is None
    with pytest.raises(ArgumentError, match="A job may send JSON alone"):
        message_body.check(message)


def test_find_code_sees_what_is_shared() -> None:
    code = {"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["id"]}]}
    body = [[shared(0, code), same(0)], {}, {}]
    with pytest.raises(ArgumentError, match="py/reduce"):
        message_body.check(CeleryMessage("1", "a.b", "celery", json.dumps(body)))


def test_text_of_a_set_does_not_depend_on_its_order() -> None:
    one, other = ({"py/set": [*members]} for members in (["a", "b", 1], [1, "b", "a"]))
    assert as_text([one]) == as_text([other]) != as_text([["a", "b", 1]])
