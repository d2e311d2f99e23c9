"""Calls that depend on others: results as arguments, ``map``, chain, group and chord."""

from __future__ import annotations

import copyreg
import pickle
from typing import Any

import pytest
from tblib.pickling_support import pickle_exception

from girder_dask import JobFailed, JobResult, chain, chord, group, task
from girder_dask.client.backend import set_backend
from girder_dask.errors import SubmissionError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.exceptions import RemoteTraceback, failure, pack_exception
from girder_dask.protocol.payload import Dependency, is_plain, open_call
from girder_dask.transforms import TemporaryDirectory
from tests.support.recording_backend import RecordingBackend


@task(title="Add")
def add(a: Any, b: Any = 0) -> Any:
    return a + b


@task
def total(values: list[int]) -> int:
    return sum(values)


def arguments(backend: RecordingBackend, n: int) -> tuple[Any, ...]:
    return open_call(backend.submissions[n].payload).args


# -- results as arguments ----------------------------------------------------------------------


def test_results_that_would_not_be_replaced_are_refused(backend: RecordingBackend) -> None:
    with pytest.raises(SubmissionError, match="a set of JobResults"):
        total.delay({JobResult("a"), JobResult("b")})
    set_backend(None)
    started: Any = add.delay(1, girder_job_disable=True)
    set_backend(backend)
    with pytest.raises(SubmissionError, match=r"has no job .* from get\(\)"):
        total.delay([started])
    assert not backend.submissions


def test_a_result_among_the_arguments_is_a_dependency(backend: RecordingBackend) -> None:
    first, second = add.delay(1), add.delay(2)
    add.delay([first, {"deep": (second, first)}], b=JobResult("other"))
    submission = backend.submissions[2]
    assert submission.dependencies == [first.id, second.id, "other"]
    call = open_call(submission.payload)
    assert call.args == ([Dependency("job1"), {"deep": (Dependency("job2"), Dependency("job1"))}],)
    assert call.kwargs == {"b": Dependency("other")}
    shown = ["JobResult('job1')", {"deep": ["JobResult('job2')", "JobResult('job1')"]}]
    assert submission.args == [shown]
    assert is_plain(submission.payload)


def test_a_group_of_results_is_the_list_of_their_values(backend: RecordingBackend) -> None:
    total.delay(group(add.s(1), add.s(2)).delay())
    assert arguments(backend, 2) == ([Dependency("job1"), Dependency("job2")],)


# -- chain, group, chord -----------------------------------------------------------------------


def test_each_call_of_a_chain_gets_the_value_of_the_one_before(backend: RecordingBackend) -> None:
    last = (add.s(1, 2) | add.s(3) | add.si(4, 5)).delay()
    assert [arguments(backend, n) for n in range(3)] == [(1, 2), (Dependency("job1"), 3), (4, 5)]
    assert last.id == "job3"
    assert last.parent.id == "job2"
    assert last.parent.parent.id == "job1"


def test_options_of_a_signature(backend: RecordingBackend) -> None:
    add.s(1).set(girder_job_title="Mine", priority=4).delay()
    (submission,) = backend.submissions
    assert (submission.title, submission.priority) == ("Mine", 4)
    assert add.settings.priority == 0


def test_a_chord_gives_the_values_of_a_group_to_its_body(backend: RecordingBackend) -> None:
    chord([add.s(n) for n in range(2)])(total.s())
    assert arguments(backend, 2) == ([Dependency("job1"), Dependency("job2")],)
    assert chain(group(add.s(1), add.s(2)), total.s()).links[1].task is total


# -- options and calls without a job -----------------------------------------------------------


def test_options_return_another_task(backend: RecordingBackend) -> None:
    urgent = add.options(priority=9, timeout=3, resources={"GPU": 1}, title="Urgent")
    urgent.delay(1)
    add.delay(1)
    assert [(s.priority, s.timeout, s.title) for s in backend.submissions] == [
        (9, 3.0, "Urgent"),
        (0, None, "Add"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retires": 2}, "Did you mean retries"),
        ({"queue": "local"}, "resources="),
        ({"timeout": -1}, "timeout=-1: Expected `float` > 0"),
        ({"bind": True}, "do not exist"),
        ({"at_most_once": 1}, "at_most_once=1: Expected `bool`, got `int`"),
        ({"at_most_once": True, "retries": 1}, "has no retries"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SubmissionError, match=message):
        add.options(**options)


def test_without_a_job_and_a_cluster_a_call_runs_here() -> None:
    result: Any = add.delay(1, b=2, girder_job_disable=True)
    assert (result.get(), result.status, result.job) == (3, JobStatus.SUCCESS, None)
    failed: Any = add.delay(1, b="2", girder_job_disable=True)
    assert failed.failed()
    with pytest.raises(TypeError, match="unsupported operand"):
        failed.get()


def test_without_a_job_transforms_that_need_no_girder_work(tmp_path: Any) -> None:
    result: Any = task(lambda path: path).delay(TemporaryDirectory(), girder_job_disable=True)
    assert isinstance(result.get(), str)


# -- errors of tasks, raised again -------------------------------------------------------------


class Odd(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.one = one


@pytest.fixture(params=[True, False], ids=["known to tblib", "not known to tblib"])
def with_tblib(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask has tblib pickle the exceptions that there are when it is imported, and no others."""
    if request.param:
        monkeypatch.setitem(copyreg.dispatch_table, Odd, pickle_exception)
    else:
        monkeypatch.delitem(copyreg.dispatch_table, Odd, raising=False)


@pytest.mark.usefixtures("with_tblib")
@pytest.mark.parametrize(
    "error",
    [
        ValueError("no coins"),
        KeyError("coins"),
        FileNotFoundError(2, "No such file", "a.png"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "odd"),
        Odd(1, 2),
    ],
    ids=repr,
)
def test_an_error_is_what_the_task_raised_and_a_failed_job(error: Exception) -> None:
    packed = pack_exception(error, "Traceback (most recent call last): there")
    raised = failure("5f3c", "reason", packed, unpickle=True)
    for known in (raised, pickle.loads(pickle.dumps(raised))):
        assert isinstance(known, JobFailed)
        assert isinstance(known, type(error))
        assert str(known) == str(error)
        assert known.job_id == "5f3c"
        assert isinstance(known.__cause__, RemoteTraceback)
        assert "most recent call last" in str(known.__cause__)
    assert getattr(raised, "errno", None) == getattr(error, "errno", None)
    assert getattr(raised, "one", None) == getattr(error, "one", None)


def test_what_cannot_be_had_without_unpickling_is_a_failed_job_with_the_traceback() -> None:
    raised = failure("5f3c", "Odd: 1 and 2", pack_exception(Odd(1, 2), "Traceback"), unpickle=False)
    assert type(raised) is JobFailed
    assert "5f3c" in str(raised)
    assert "Odd: 1 and 2" in str(raised)
    assert isinstance(raised.__cause__, RemoteTraceback)


def test_a_failed_job_of_which_nothing_is_kept() -> None:
    raised = failure("5f3c", None, None, unpickle=True)
    assert str(raised) == "Job 5f3c failed: see its log"
    assert raised.__cause__ is None
