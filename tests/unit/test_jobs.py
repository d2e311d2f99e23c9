"""What travels, and which states follow which."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_dask.jobs import FINAL, PREDECESSORS, JobStatus, can_follow
from girder_dask.protocol.messages import JobEvent, JobSpec, JobUpdate, from_json, to_json

S = JobStatus
AT_WORK = [
    S.FETCHING_INPUT,
    S.CONVERTING_INPUT,
    S.RUNNING,
    S.CONVERTING_OUTPUT,
    S.PUSHING_OUTPUT,
]


def test_the_numbers_are_those_of_girder() -> None:
    # Read, not imported: girder_jobs connects to a database when it is imported.
    spec = importlib.util.find_spec("girder_jobs")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "constants.py").read_text()
    statuses = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == "JobStatus"
    )
    numbers = {
        ast.unparse(node.targets[0]): node.value.value
        for node in statuses.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert len(numbers) == 6
    assert numbers == {s.name: int(s) for s in S if s < 820}


def test_the_other_numbers_are_those_of_girder_worker() -> None:
    assert {s.name: int(s) for s in S if s >= 820} == {
        "FETCHING_INPUT": 820,
        "CONVERTING_INPUT": 821,
        "CONVERTING_OUTPUT": 822,
        "PUSHING_OUTPUT": 823,
        "CANCELING": 824,
    }


@pytest.mark.parametrize("new", list(S))
@pytest.mark.parametrize("end", sorted(FINAL))
def test_an_end_is_never_left(end: JobStatus, new: JobStatus) -> None:
    assert not can_follow(end, new)


def test_every_state_says_what_it_may_follow() -> None:
    assert set(PREDECESSORS) == set(S)
    assert not any(can_follow(s, s) for s in S)


@pytest.mark.parametrize("start", [S.QUEUED, S.CANCELING, *AT_WORK])
def test_every_open_state_can_be_stopped_and_can_fail(start: JobStatus) -> None:
    assert can_follow(start, S.CANCELED)
    assert can_follow(start, S.ERROR)
    assert can_follow(start, S.CANCELING) == (start != S.CANCELING)


def test_a_lost_job_is_queued_again_but_not_one_that_is_to_stop() -> None:
    assert all(can_follow(s, S.QUEUED) for s in AT_WORK)
    assert not can_follow(S.CANCELING, S.QUEUED)
    assert not can_follow(S.QUEUED, S.SUCCESS)


def test_the_usual_course_of_a_job() -> None:
    course = [S.INACTIVE, S.QUEUED, S.FETCHING_INPUT, S.RUNNING, S.PUSHING_OUTPUT, S.SUCCESS]
    assert all(can_follow(a, b) for a, b in itertools.pairwise(course))
    at_work = course[2:]
    assert not any(can_follow(b, a) for a, b in itertools.pairwise(at_work))


# -- the way over the wire -----------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
ids = st.from_regex("[0-9a-f]{24}", fullmatch=True)
specs = st.builds(
    JobSpec,
    id=ids,
    attempt=st.integers(1, 9),
    task=text,
    payload=st.binary(max_size=50),
    token=st.none() | text,
    girder_api_url=st.none() | text,
    default_api_url=st.none() | text,
    package=st.none() | text,
    title=text,
    retries=st.integers(0, 9),
    timeout=st.none() | numbers,
    resources=st.none() | st.dictionaries(text, numbers, max_size=2),
    priority=st.integers(-5, 5),
    isolation=st.sampled_from([None, "thread", "process"]),
    trusted=st.booleans(),
)
progress = st.fixed_dictionaries({}, optional={"total": numbers, "message": text})
happened = st.builds(
    JobEvent,
    id=ids,
    attempt=st.integers(1, 9),
    time=numbers,
    status=st.none() | st.sampled_from([int(s) for s in S]),
    log=st.none() | text,
    progress=st.none() | progress,
    result=st.none() | st.binary(max_size=50),
    error=st.none() | text,
    run=st.none() | text,
    worker=st.none() | text,
)
updates = st.builds(
    JobUpdate,
    id=ids,
    attempt=st.integers(1, 9),
    sequence=st.integers(1, 2**60),
    statuses=st.none() | st.lists(st.tuples(st.sampled_from(S).map(int), numbers).map(list)),
    log=st.none() | text,
    progress=st.none() | progress,
    result=st.none() | st.binary(max_size=50),
    error=st.none() | text,
)


@given(specs | happened | updates)
def test_what_travels_arrives_as_it_was(value: Any) -> None:
    wire = value.to_wire()
    by_dask = msgpack.unpackb(msgpack.packb(wire), strict_map_key=False)
    by_http = from_json(json.loads(json.dumps(to_json(wire))))
    assert type(value).from_wire(by_dask) == type(value).from_wire(by_http) == value


def test_only_what_differs_from_its_default_travels() -> None:
    assert JobSpec(id="a", attempt=1, task="m:f").to_wire() == {
        "version": 1,
        "id": "a",
        "attempt": 1,
        "task": "m:f",
        "trusted": False,  # always, so that nobody takes the lack of it for trust
    }
    event = JobEvent(id="a", attempt=1, time=0.0, status=int(S.INACTIVE))
    assert event.to_wire()["status"] == 0, "0 is a state, not the lack of one"


@pytest.mark.parametrize("version", [None, 0, 2, "1"])
@pytest.mark.parametrize("cls", [JobSpec, JobEvent, JobUpdate])
def test_another_version_is_refused_with_what_to_do(cls: Any, version: Any) -> None:
    wire = {"version": version, "id": "a", "attempt": 1, "task": "m:f", "time": 0, "sequence": 1}
    with pytest.raises(ValueError, match=f"{cls.__name__} of wire version {version!r}.*doctor"):
        cls.from_wire(wire)


def test_fields_that_a_later_release_adds_are_left_out() -> None:
    wire = JobSpec(id="a", attempt=1, task="m:f").to_wire() | {"colour": "blue"}
    assert JobSpec.from_wire(wire) == JobSpec(id="a", attempt=1, task="m:f")


@pytest.mark.parametrize(
    "value",
    [
        JobSpec(id="a", attempt=1, task="m:f", payload=b"SECRET", token="SECRET"),
        JobEvent(id="a", attempt=1, time=0.0, result=b"SECRET"),
        JobUpdate(id="a", attempt=1, sequence=1, result=b"SECRET"),
    ],
)
def test_no_repr_shows_a_secret_or_the_bytes_of_a_call(value: Any) -> None:
    assert "SECRET" not in repr(value)
    assert "SECRET" not in str(value)
    assert "SECRET" not in f"{[value]}"


def test_values_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        JobSpec(id="a", attempt=1, task="m:f").attempt = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("pkg.mod:count", "count-a-3"),
        ("pkg.mod:Tasks.count", "Tasks_count-a-3"),
        ("pkg.mod:<lambda>", "lambda-a-3"),
        ("", "job-a-3"),
    ],
)
def test_the_key_names_the_function_the_job_and_the_attempt(task: str, key: str) -> None:
    assert JobSpec(id="a", attempt=3, task=task, token="SECRET").key == key


def test_only_our_wrapping_of_bytes_is_undone() -> None:
    assert to_json({"a": (b"x", {"b": b""})}) == {"a": [{"b64": "eA=="}, {"b": {"b64": ""}}]}
    assert from_json({"b64": "eA==", "more": 1}) == {"b64": "eA==", "more": 1}
