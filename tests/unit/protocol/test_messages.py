"""What travels arrives as it was, and is checked."""

from __future__ import annotations

import json
import pickle
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from girder_dask.jobs import JobStatus
from girder_dask.protocol.execution_options import OPTION_NAMES
from girder_dask.protocol.messages import (
    JobEvent,
    JobSpec,
    JobUpdate,
    MalformedMessage,
    MapParent,
    StoredResult,
    Submission,
)
from girder_dask.protocol.wire_json import from_json, to_json
from girder_dask.protocol.wire_version import WIRE_VERSION, IncompatibleVersion

S = JobStatus

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
amounts = st.floats(min_value=1e-9, max_value=1e9)
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
    timeout=st.none() | amounts,
    resources=st.none() | st.dictionaries(text, amounts, max_size=2),
    priority=st.integers(-5, 5),
    isolation=st.sampled_from([None, "thread", "process"]),
    at_most_once=st.booleans(),
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
    assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.parametrize("options", [{}, {"retries": 2}, {"resources": {"GPU": 1.0}}])
def test_job_spec_pickles_only_options_that_are_set(options: dict[str, Any]) -> None:
    spec = JobSpec(id="a", attempt=1, task="m:f", dependencies=["b"], trusted=True, **options)
    assert pickle.loads(pickle.dumps(spec)) == spec
    _rebuild, (_fields, *given) = spec.__reduce__()
    assert ("GPU" in repr(given), "2" in repr(given)) == (
        "resources" in options,
        "retries" in options,
    )
    assert bool(given) == bool(options)


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


def test_pending_reason_travels_under_its_former_name() -> None:
    event = JobEvent(id="a", attempt=1, time=0.0, pending_reason="no worker is there")
    update = JobUpdate(id="a", attempt=1, sequence=1, pending_reason="no worker is there")
    for message in (event, update):
        wire = message.to_wire()
        assert wire["waits"] == "no worker is there"
        assert type(message).from_wire(wire) == message


@pytest.mark.parametrize("version", [None, WIRE_VERSION - 2, WIRE_VERSION + 2, "1", True])
@pytest.mark.parametrize("cls", [JobSpec, JobEvent, JobUpdate])
def test_another_version_is_refused_with_what_to_do(cls: Any, version: Any) -> None:
    wire = {"version": version, "id": "a", "attempt": 1, "task": "m:f", "time": 0, "sequence": 1}
    what = f"{cls.__name__} of message version {version!r}.*doctor"
    with pytest.raises(IncompatibleVersion, match=what):
        cls.from_wire(wire)


@pytest.mark.parametrize("version", [WIRE_VERSION - 1, WIRE_VERSION + 1])
@pytest.mark.parametrize("cls", [JobSpec, JobEvent, JobUpdate])
def test_neighboring_versions_are_read(cls: Any, version: int) -> None:
    wire = {"version": version, "id": "a", "attempt": 1, "task": "m:f", "time": 0, "sequence": 1}
    assert cls.from_wire(wire).id == "a"


def test_job_spec_of_another_release_is_unpickled() -> None:
    spec = JobSpec(id="a", attempt=1, task="m:f", retries=2)
    rebuild, (fields, options) = spec.__reduce__()
    assert rebuild((*fields, "of a later release"), (*options, "too")) == spec
    assert rebuild(fields[:3], options[:1]) == JobSpec(
        id="a", attempt=1, task="m:f", **{OPTION_NAMES[0]: options[0]}
    )


def test_fields_that_a_later_release_adds_are_left_out() -> None:
    wire = JobSpec(id="a", attempt=1, task="m:f").to_wire() | {"colour": "blue"}
    assert JobSpec.from_wire(wire) == JobSpec(id="a", attempt=1, task="m:f")


@pytest.mark.parametrize(
    "value",
    [
        JobSpec(id="a", attempt=1, task="m:f", payload=b"SECRET", token="SECRET"),
        JobEvent(id="a", attempt=1, time=0.0, result=b"SECRET"),
        JobUpdate(id="a", attempt=1, sequence=1, result=b"SECRET"),
        Submission(task="m:f", payload=b"SECRET", token="SECRET"),
        StoredResult(value=b"SECRET", exception=b"SECRET"),
    ],
)
def test_no_repr_shows_a_secret_or_the_bytes_of_a_call(value: Any) -> None:
    assert "SECRET" not in repr(value)
    assert "SECRET" not in str(value)
    assert "SECRET" not in f"{[value]}"
    assert "SECRET" not in str(list(value.__rich_repr__()))


def test_values_are_frozen() -> None:
    with pytest.raises(AttributeError, match="immutable"):
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


SPEC = JobSpec(id="a", attempt=1, task="m:f").to_wire()
UPDATE = JobUpdate(id="a", attempt=1, sequence=1).to_wire()
CALL = Submission(task="m:f", payload=b"j[]").to_wire()


@pytest.mark.parametrize(
    ("cls", "wire", "error"),
    [
        (JobSpec, {**SPEC, "retries": -1}, "Expected `int` >= 0 - at `$.retries`"),
        (JobSpec, {**SPEC, "payload": "aaaa"}, "Expected `bytes`, got `str` - at `$.payload`"),
        (JobSpec, {"version": 1, "id": "a"}, "Object missing required field `attempt`"),
        (JobUpdate, {**UPDATE, "sequence": 2**62}, f"Expected `int` <= {2**62 - 1} - at `$.seq"),
        (
            JobUpdate,
            {**UPDATE, "statuses": [[4]]},
            "array` of length >= 2 - at `$.statuses[0]`",
        ),
        (JobUpdate, {**UPDATE, "log": 5}, "Expected `str | null`, got `int` - at `$.log`"),
        (Submission, {**CALL, "task": "no task"}, "- at `$.task`"),
        (Submission, {**CALL, "dependencies": ["x"]}, "- at `$.dependencies[0]`"),
        (MapParent, {"version": 1, "title": None}, "Expected `str`, got `null` - at `$.title`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_messages_name_the_field_that_is_malformed(cls: Any, wire: Any, error: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        cls.from_wire(wire)
    assert error in str(caught.value)


def test_from_wires_leaves_out_what_is_malformed(caplog: pytest.LogCaptureFixture) -> None:
    bad = {**SPEC, "id": "b", "timeout": "long"}
    assert JobSpec.from_wires([bad, SPEC]) == [JobSpec(id="a", attempt=1, task="m:f")]
    assert "A JobSpec of job b is malformed: Expected `float | null`, got `str`" in caplog.text
    with pytest.raises(ValueError, match="doctor"):
        JobSpec.from_wires([SPEC, {**SPEC, "version": WIRE_VERSION + 2}])


#: As release 0.1 wrote them at commit ce763a9.
FORMER: list[tuple[Any, dict[str, Any]]] = [
    (
        JobSpec(
            id="5f3c00000000000000000000",
            attempt=2,
            task="m:f",
            payload=b"j[]",
            token="t",
            resources={"GPU": 1.0},
            timeout=5.0,
            dependencies=["5f3c00000000000000000001"],
            at_most_once=True,
            trusted=True,
        ),
        {
            "version": 1,
            "id": "5f3c00000000000000000000",
            "attempt": 2,
            "task": "m:f",
            "payload": b"j[]",
            "token": "t",
            "timeout": 5,
            "resources": {"GPU": 1},
            "at_most_once": True,
            "dependencies": ["5f3c00000000000000000001"],
            "trusted": True,
        },
    ),
    (
        JobUpdate(id="a", attempt=1, sequence=3, statuses=[[2, 1.5], [3, 2]], log="x\n"),
        {
            "version": 1,
            "id": "a",
            "attempt": 1,
            "sequence": 3,
            "log": "x\n",
            "statuses": [[2, 1.5], [3, 2]],
        },
    ),
    (
        JobEvent(id="a", attempt=1, time=1.5, status=0, progress={"total": 3}, run="r"),
        {
            "version": 1,
            "id": "a",
            "attempt": 1,
            "time": 1.5,
            "status": 0,
            "progress": {"total": 3},
            "run": "r",
        },
    ),
    (
        Submission(task="m:f", payload=b"j[]", args=[1], kwargs={"a": 2}, title="f", retries=2),
        {
            "version": 1,
            "task": "m:f",
            "payload": b"j[]",
            "args": [1],
            "kwargs": {"a": 2},
            "title": "f",
            "retries": 2,
        },
    ),
    (MapParent(title="All"), {"version": 1, "title": "All"}),
]


@pytest.mark.parametrize(("value", "wire"), FORMER, ids=lambda v: type(v).__name__)
def test_messages_are_those_of_the_former_release(value: Any, wire: dict[str, Any]) -> None:
    assert value.to_wire() == wire
    assert type(value).from_wire(wire) == value
