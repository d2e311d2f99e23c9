"""The calls that follow a message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from girder_dask.celery.following_calls import call_text, following_calls, own_options
from girder_dask.errors import ArgumentError

ADD: dict[str, Any] = {"task": "a.add", "args": [1], "kwargs": {}}


def found(embed: Any = None, *, task: str = "a.b", args: Any = (), kwargs: Any = None) -> list[str]:
    body = {"py/tuple": [{"py/tuple": list(args)}, kwargs or {}, embed or {}]}
    return sorted(call.task for call in following_calls(task, json.loads(json.dumps(body))))


def composed(kind: str, options: Any = None, **kwargs: Any) -> dict[str, Any]:
    return {"task": f"celery.{kind}", "args": [], "kwargs": kwargs, "options": options or {}}


def test_following_calls_are_where_celery_takes_them_from() -> None:
    assert found({"callbacks": [ADD], "errbacks": [{"task": "e.e"}]}) == ["a.add", "e.e"]
    assert found({"chord": ADD, "chain": [{"task": "c.c"}]}) == ["a.add", "c.c"]
    options = {"link": [ADD], "link_error": {"task": "e.e"}, "chord": ADD, "chain": [ADD]}
    assert found({"chain": [{"task": "c.c", "options": options}]}) == [*["a.add"] * 3, "c.c", "e.e"]


def test_following_calls_are_the_members_of_compositions() -> None:
    group = composed("group", tasks={"py/tuple": [ADD, composed("chain", tasks=[ADD, ADD])]})
    assert found({"chain": [composed("chord", header=group, body=ADD)]}) == ["a.add"] * 4
    assert found(task="celery.chord_unlock", args=["id", group]) == ["a.add"] * 3
    assert found(task="celery.chord_unlock", args=["id"], kwargs={"callback": ADD}) == ["a.add"]


@pytest.mark.parametrize(
    ("embed", "expected"),
    [
        (
            {"chain": [{"task": "c.c", "args": [ADD], "kwargs": {"tasks": [ADD], "body": ADD}}]},
            ["c.c"],
        ),
        ({"chain": [{"task": "c.c", "options": {"headers": ADD, "other": ADD}}]}, ["c.c"]),
        ({"chain": [composed("map", task={"task": "c.c"}, it=[ADD])]}, ["celery.map"]),
        ({"other": [ADD]}, []),
    ],
)
def test_data_is_no_following_call(embed: Any, expected: list[str]) -> None:
    assert found(embed, args=[ADD], kwargs={"tasks": [ADD]}) == expected


def test_chunks_are_followed_by_their_parts() -> None:
    pairs = {"py/tuple": [[1, 2], [3, 4], [5, 6]]}
    calls = list(following_calls("celery.chunks", [[], {"task": ADD, "it": pairs, "n": 2}, {}]))
    assert sorted(call.kwargs["it"] for call in calls) == [[[1, 2], [3, 4]], [[5, 6]]]
    assert not any(call.is_mutable for call in calls)
    part = {"task": {**ADD, "options": {"task_id": "1"}}, "it": [[5, 6]]}
    text = call_text("celery.starmap", [], part)
    assert text in [call_text(call.task, call.args, call.kwargs) for call in calls]
    for n in (0, -1, "2", None):
        assert found(task="celery.chunks", kwargs={"task": ADD, "it": pairs, "n": n}) == []


def test_rights_are_those_of_the_call_and_what_it_is_in() -> None:
    local = {"queue": "local"}
    mutable, immutable = ADD, {**ADD, "immutable": True}
    chain = [mutable, immutable, {**immutable, "options": local}]
    calls = following_calls("a.b", [[], {}, {"chain": [*chain]}])
    assert sorted((call.is_mutable, call.is_local) for call in calls) == [
        (False, False),
        (False, True),
        (True, False),
    ]
    group = composed("group", local, tasks=[{**ADD, "options": {"link": immutable}}])
    calls = following_calls("a.b", [[], {}, {"chain": [group]}])
    assert {(call.is_mutable, call.is_local) for call in calls} == {(True, True), (False, False)}


@pytest.mark.parametrize("embed", [3, [ADD], {"chain": {"a": 5}}, {"chain": [{"task": 5}]}])
def test_a_malformed_body_has_no_following_calls(embed: Any) -> None:
    assert list(following_calls("celery.chord_unlock", [3, [ADD], embed])) == []


STAR = composed("starmap", task={"task": "evil.run"}, it=[["image"]]) | {"immutable": True}


@pytest.mark.parametrize(
    "embed",
    [
        {"py/id": 2},
        {"errbacks": {"py/id": 2}},
        {"errbacks": [{"py/id": 2}]},
        {"errbacks": {"py/tuple": [STAR], "task": "celery.accumulate"}},
        {"errbacks": {"py/tuple": [STAR], "x": 1}},
        {"errbacks": [{**ADD, "py/object": "x.Y"}]},
        {"chain": [{**ADD, "options": {"py/id": 3}}]},
        {"chain": [{**ADD, "options": {"link_error": {"py/id": 3}}}]},
        {"chain": [{**ADD, "subtask_type": "group", "kwargs": {"tasks": [STAR]}}]},
        {"chain": [{"task": "celery.accumulate", "subtask_type": "group"}]},
        {"chain": [{**ADD, "subtask_type": "unknown"}]},
        {"chain": [{**ADD, "immutable": {"py/b64": ""}}]},
        {"chain": [{**ADD, "immutable": 1}]},
        {"chain": [{"task": {"py/b64": "YQ=="}}]},
        {"chain": [{"args": []}]},
        {"chain": [{"task": "celery.group", "kwargs": {"py/id": 1}}]},
        {"chain": [composed("group", tasks={"py/id": 1})]},
        {"chain": [composed("starmap", task={"py/id": 1}, it=[])]},
        {"chain": [{"task": "celery.chord_unlock", "args": ["id", ADD]}]},
    ],
)
def test_call_that_may_be_opened_as_another_one_is_refused(embed: Any) -> None:
    body = [[], {}, embed]
    with pytest.raises(ArgumentError, match="cannot be checked"):
        list(following_calls("a.b", body, strict=True))
    # What is stored and unclear is never a call that a job may send.
    assert [call.task for call in following_calls("a.b", body)] in ([], ["a.add"])


def test_hidden_callback_of_a_chord_is_refused() -> None:
    for args in ({"py/tuple": ["g", STAR], "x": 1}, {"py/id": 1}, "g"):
        with pytest.raises(ArgumentError, match="cannot be checked"):
            list(following_calls("celery.chord_unlock", [args, {}, {}], strict=True))


def test_signatures_of_celery_are_clear() -> None:
    from celery import chain, chord, group, signature

    add = signature("a.add", args=(1,))
    shapes = [
        chain(add, add.clone()),
        group(add, add.clone()),
        chord([add], add.clone(immutable=True)),
        add.clone().on_error(signature("e.e")),
    ]
    for shape in shapes:
        body = [[], {}, {"chain": [json.loads(json.dumps(shape))]}]
        assert list(following_calls("a.b", body, strict=True))


@pytest.mark.parametrize(
    "embed",
    [
        {"errbacks": ["v.victim"]},
        {"callbacks": ["v.victim"]},
        {"chain": ["v.victim"]},
        {"chord": "v.victim"},
        {"errbacks": {"task": "a.add", "v.victim": 1}},
        {"callbacks": ADD},
        {"chain": [composed("group", tasks=["v.victim"])]},
        {"chain": [composed("chord", header="abc", body=ADD)]},
        {"chain": [{**ADD, "options": {"link": "v.victim"}}]},
        {"chain": [{**ADD, "options": {"link_error": ["v.victim"]}}]},
        {"chain": [{**ADD, "delivery_info": {"is_eager": True}}]},
        {"chain": [{"task": "celery.chord", "args": [[ADD], ADD]}]},
    ],
)
def test_strict_calls_are_none_that_celery_takes_for_others(embed: Any) -> None:
    with pytest.raises(ArgumentError, match="cannot be checked, since the worker may open it as"):
        list(following_calls("a.b", [[], {}, embed], strict=True))
    assert found(embed) in ([], ["a.add"])


@pytest.mark.parametrize("kind", ["options", "items"])
def test_calls_that_share_very_much_are_not_looked_at(kind: str) -> None:
    if kind == "options":
        options = {f"k{n}": 1 for n in range(2_000)}
        calls = [{**ADD, "options": options} for _ in range(2_000)]
    else:
        chunks = {"task": ADD, "it": [[0]] * 20_000, "n": 20_000}
        calls = [{"task": "celery.chunks", "kwargs": chunks} for _ in range(50)]
    with pytest.raises(ArgumentError, match="share so much that they cannot be checked"):
        list(following_calls("a.b", [[], {}, {"chain": calls}], strict=True))
    assert len(list(following_calls("a.b", [[], {}, {"chain": calls}]))) < 2_000


def test_options_and_headers_of_a_call_are_compared_apart() -> None:
    one, other = ([{"py/object": f"v.{name}"}] for name in "ab")
    (call,) = following_calls(
        "a.b", [[], {}, {"chain": [{**ADD, "options": {"h": one, "headers": {"h": other}}}]}]
    )
    assert own_options(call) == {"h": one, "headers": {"h": other}}
