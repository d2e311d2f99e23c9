"""Loops that say how far they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from girder_dask import JobInterrupted, progress
from girder_dask.jobs import JobStatus
from girder_dask.tasks.running_job import JobManager, RunningJob, current


class Sink:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def write(self, text: str) -> None:
        raise AssertionError(text)

    def progress(self, changes: Mapping[str, Any]) -> None:
        self.told.append(dict(changes))

    def status(self, status: JobStatus) -> None:
        raise AssertionError(status)

    def flush(self) -> None:
        pass


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    token = current.set(RunningJob(id="a", job_manager=JobManager(sink)))
    yield sink
    current.reset(token)


def job() -> RunningJob:
    found = current.get()
    assert found is not None
    return found


def test_a_job_shows_how_far_the_loop_is(sink: Sink) -> None:
    assert list(progress("abc", message="Reading")) == ["a", "b", "c"]
    assert sink.told[0] == {"total": 3, "current": 0, "message": "Reading"}
    assert sink.told[-1] == {"current": 3}


def test_a_fast_loop_says_little(sink: Sink) -> None:
    assert sum(progress(range(100_000))) == 4999950000
    assert len(sink.told) < 30
    assert sink.told[-1] == {"current": 100_000}


def test_a_slow_loop_says_each_step(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["girder_dask.progress"], "_REPORT_INTERVAL_S", 0.0)
    list(progress([1, 2, 3]))
    assert [told["current"] for told in sink.told] == [0, 1, 2, 3, 3]


def test_a_total_may_be_given_or_unknown(sink: Sink) -> None:
    list(progress(iter([1, 2]), total=2))
    list(progress(iter([1, 2])))
    assert [told["total"] for told in sink.told if "total" in told] == [2, 0]


def test_a_canceled_job_leaves_the_loop(sink: Sink) -> None:
    loop = progress(range(10))
    assert [next(loop), next(loop)] == [0, 1]
    job().job_manager.status = JobStatus.CANCELING
    with pytest.raises(JobInterrupted, match="after 2 elements"):
        next(loop)
    assert sink.told[-1] == {"current": 2}


def test_a_loop_that_is_left_says_where(sink: Sink) -> None:
    for n in progress(range(10)):
        if n == 3:
            break
    assert sink.told[-1] == {"current": 3}
    with pytest.raises(ZeroDivisionError):
        _ = [1 / (5 - n) for n in progress(range(10))]
    list(progress(range(2)))
    assert sink.told[-1] == {"current": 2}, "the loop before is over"


def test_of_loops_within_each_other_the_outermost_is_shown(sink: Sink) -> None:
    for _ in progress(range(2)):
        assert list(progress(range(50))) == list(range(50))
    assert [told["total"] for told in sink.told if "total" in told] == [2]
    assert sink.told[-1] == {"current": 2}


def test_the_job_is_that_of_where_it_was_called(sink: Sink) -> None:
    loop = progress(range(3))
    token = current.set(None)
    assert list(loop) == [0, 1, 2]
    current.reset(token)
    assert sink.told[-1] == {"current": 3}


def test_elsewhere_it_is_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(progress([1, 2, 3])) == [1, 2, 3]
    assert capsys.readouterr().err == "", "nobody looks"
    monkeypatch.setattr("girder_dask.client.progress_bar.is_visible", lambda: True)
    assert list(progress([1, 2, 3], message="Reading")) == [1, 2, 3]
    err = capsys.readouterr().err
    assert "Reading" in err
    assert "3/3" in err
