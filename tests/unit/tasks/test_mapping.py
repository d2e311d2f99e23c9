"""``map`` and ``starmap``."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Iterator
from typing import Any

import pytest

from girder_dask import task
from girder_dask.client.backend import use_backend
from girder_dask.client.result import MapResult
from girder_dask.errors import GirderError, JobCanceled, SubmissionError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.exceptions import pack_exception
from girder_dask.protocol.messages import StoredResult
from girder_dask.protocol.payload import open_call, pack_value
from girder_dask.transforms import GirderUploadToFolder
from tests.support.recording_backend import RecordingBackend


@task(title="Add")
def add(a: int, b: int = 0) -> int:
    return a + b


@task
def takes_total(n: int, total: int = 0) -> int:
    return n + total


@pytest.fixture
def backend() -> Iterator[RecordingBackend]:
    backend = RecordingBackend()
    with use_backend(backend):
        yield backend


def arguments(backend: RecordingBackend, n: int) -> tuple[Any, ...]:
    return open_call(backend.submissions[n].payload).args


def titles(backend: RecordingBackend) -> list[str]:
    return [submission.title for submission in backend.submissions]


def test_map_makes_a_parent_and_a_job_for_each_call(backend: RecordingBackend) -> None:
    result = add.map([1, 2, 3], [10, 20, 30], girder_job_type="sum", girder_job_public=True)
    assert isinstance(result, MapResult)
    assert [r.id for r in result] == ["job1", "job2", "job3"]
    (parent,) = backend.groups
    assert parent is not None
    assert (parent.title, parent.type, parent.public) == ("Add", "sum", True)
    assert [s.title for s in backend.submissions] == ["Add 1/3", "Add 2/3", "Add 3/3"]
    assert {s.type for s in backend.submissions} == {"sum"}
    assert [arguments(backend, n) for n in range(3)] == [(1, 10), (2, 20), (3, 30)]


def test_map_takes_what_is_the_same_for_all(backend: RecordingBackend) -> None:
    add.map(iter("ab"), b="z", girder_job_title="Letters")
    assert [s.title for s in backend.submissions] == ["Letters 1/2", "Letters 2/2"]
    assert [open_call(s.payload).kwargs for s in backend.submissions] == [{"b": "z"}] * 2


@pytest.mark.parametrize(
    ("iterables", "options", "message"),
    [
        ((), {}, "needs an iterable for each argument"),
        (([1],), {"total": -1}, "total=-1, which is not a number of calls"),
        (([1],), {"girder_map_titles": "One"}, "girder_map_titles='One'. Give a function"),
        (([1, 2],), {"girder_map_titles": ["One"]}, "has a call 2, and girder_map_titles has only"),
        (([1],), {"girder_map_titles": [1]}, "with the title 1, which is not a string"),
        (([1],), {"girder_map_hooks": lambda n: n}, "girder_result_hooks=1. Give a list of hooks"),
        (([1],), {"girder_job_disable": True}, "Client.map"),
        (([1], [2], [3]), {}, "do not fit"),
    ],
)
def test_a_map_that_cannot_be_makes_no_job(
    backend: RecordingBackend, iterables: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SubmissionError, match=message):
        add.map(*iterables, **options)
    assert not backend.submissions


def test_the_values_of_a_map_come_in_order(backend: RecordingBackend) -> None:
    result = add.map([1, 2])
    for n, job in enumerate(["job1", "job2"], 1):
        backend.results[job] = StoredResult(value=pack_value(n))
        backend.jobs[job]["status"] = int(JobStatus.SUCCESS)
    backend.jobs["parent"]["status"] = int(JobStatus.SUCCESS)
    assert result.get(timeout=5) == [1, 2]


def test_a_map_raises_what_the_first_of_its_jobs_raised(backend: RecordingBackend) -> None:
    result = add.map([1, 2])
    backend.jobs["job1"]["status"] = int(JobStatus.SUCCESS)
    backend.jobs["job2"]["status"] = int(JobStatus.ERROR)
    backend.jobs["parent"]["status"] = int(JobStatus.ERROR)
    backend.results["job2"] = StoredResult(
        error="ValueError: two", exception=pack_exception(ValueError("two"), "Traceback …")
    )
    with pytest.raises(ValueError, match=r"^two$"):
        result.get(timeout=5)


def test_a_map_of_nothing_is_an_empty_result(backend: RecordingBackend) -> None:
    result = add.map([])
    backend.jobs["parent"]["status"] = int(JobStatus.SUCCESS)
    assert (result.get(timeout=5), len(result), list(result)) == ([], 0, [])
    (parent,) = backend.groups
    assert parent is not None
    assert parent.task == add.name


def test_the_shortest_iterable_ends_a_map(backend: RecordingBackend) -> None:
    add.map(itertools.count(), [10, 20])
    assert [arguments(backend, n) for n in range(2)] == [(0, 10), (1, 20)]
    assert titles(backend) == ["Add 1/2", "Add 2/2"]


def test_starmap_takes_the_arguments_of_each_call(backend: RecordingBackend) -> None:
    add.starmap([(1, 10), [2], iter((3, 30))], girder_job_title="Sums")
    assert [arguments(backend, n) for n in range(3)] == [(1, 10), (2,), (3, 30)]
    assert titles(backend) == ["Sums 1/3", "Sums 2/3", "Sums 3/3"]


def test_titles_come_from_a_function_or_a_list(backend: RecordingBackend) -> None:
    add.map([1, 2], [3, 4], girder_map_titles=lambda a, b: f"{a} and {b}")
    add.map([1, 2], girder_map_titles=iter(["One", None, "not needed"]))
    assert titles(backend) == ["1 and 3", "2 and 4", "One", "Add 2/2"]


def test_hooks_come_from_a_function_or_a_list(backend: RecordingBackend) -> None:
    folders = ["5f3c00000000000000000001", "5f3c00000000000000000002"]
    add.starmap([(1, 2), (3, 4)], girder_map_hooks=lambda a, _b: [GirderUploadToFolder(str(a))])
    add.map(folders, girder_map_hooks=[[GirderUploadToFolder(f)] for f in folders])
    hooks = [open_call(submission.payload).hooks for submission in backend.submissions]
    assert [hook.folder_id for (hook,) in hooks] == ["1", "3", *folders]


def test_total_is_an_argument_of_a_function_that_has_one(backend: RecordingBackend) -> None:
    takes_total.map([1], total=5)
    takes_total.map(iter([1]), total=5, girder_map_total=7)
    add.map(iter([1]), total=7)
    kwargs = [open_call(submission.payload).kwargs for submission in backend.submissions]
    assert kwargs == [{"total": 5}, {"total": 5}, {}]
    assert titles(backend) == ["takes_total 1/1", "takes_total 1/7", "Add 1/7"]


def test_all_calls_of_a_map_start_at_the_same_time(backend: RecordingBackend) -> None:
    add.options(countdown=60).map(range(20))
    (moment,) = {submission.not_before for submission in backend.submissions}
    assert moment is not None
    assert moment - time.time() == pytest.approx(60, abs=5)


# -- pieces ------------------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of three calls at most."""
    monkeypatch.setattr("girder_dask.tasks.mapping.PIECE_JOBS", 3)


@pytest.mark.usefixtures("small_pieces")
def test_a_map_is_sent_in_pieces(backend: RecordingBackend) -> None:
    made = []
    result = add.map(made.append(n) or n for n in range(8))
    assert backend.pieces == [(3, False), (3, False), (2, True)]
    assert titles(backend)[:2] == ["Add 1", "Add 2"]
    assert [job.id for job in result] == [f"job{n}" for n in range(1, 9)]
    again = pickle.loads(pickle.dumps(result))
    assert [job.id for job in again.results] == [job.id for job in result.results]
    assert [job.id for job in result.results[-3:]] == ["job6", "job7", "job8"]
    with pytest.raises(IndexError):
        result.results[8]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("count", [0, 3, 6])
def test_a_full_last_piece_is_the_last(backend: RecordingBackend, count: int) -> None:
    add.map(iter(range(count)))
    assert [is_last for _, is_last in backend.pieces] == [False] * max(0, count // 3 - 1) + [True]
    assert [n for n, _ in backend.pieces] == ([3] * (count // 3) or [0])


@pytest.mark.usefixtures("small_pieces")
def test_elements_are_read_as_pieces_are_sent(backend: RecordingBackend) -> None:
    """So a client holds no more than two pieces, whatever the length of the map."""
    ahead = []

    def elements() -> Iterator[int]:
        for n in range(30):
            ahead.append(n - len(backend.submissions))
            yield n

    add.map(elements())
    assert max(ahead) <= 4


def test_a_piece_is_bounded_in_bytes(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("girder_dask.tasks.mapping.PIECE_BYTES", 2500)
    add.map(["x" * 1000] * 4 + ["x" * 5000])
    assert backend.pieces == [(2, False), (2, False), (1, True)]


def test_a_piece_is_sent_when_the_iterable_is_slow(
    backend: RecordingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("girder_dask.tasks.mapping._PIECE_TIME_S", 0.0)
    add.map(range(3))
    assert backend.pieces == [(1, False), (1, False), (1, True)]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("error", [ValueError("no more"), KeyboardInterrupt()])
def test_an_iterable_that_raises_cancels_the_map(
    backend: RecordingBackend, error: BaseException
) -> None:
    def elements() -> Iterator[int]:
        yield from range(7)
        raise error

    with pytest.raises(type(error)) as raised:
        add.map(elements())
    assert raised.value.__notes__ == ["Map parent was canceled: 6 of its jobs were recorded."]
    assert backend.canceled == ["parent"]


@pytest.mark.usefixtures("small_pieces")
def test_a_map_that_was_canceled_meanwhile_says_so(backend: RecordingBackend) -> None:
    def elements() -> Iterator[int]:
        yield from range(7)
        backend.jobs["parent"]["status"] = int(JobStatus.CANCELING)
        raise GirderError("It takes no more jobs.")

    with pytest.raises(JobCanceled, match="was canceled after 6 of its jobs were"):
        add.map(elements())
    assert backend.canceled == []
