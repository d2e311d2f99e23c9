"""Counts of changes of jobs, in memory."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from girder_dask.plugin.metrics.counts import JobCounts

BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)
S = JobStatus


def change(*stamps: tuple[JobStatus, float], new: int, attempts: int = 0, nbytes: int = 0) -> Any:
    """Return a change of which the last ``new`` states are new."""
    times = [{"status": int(s), "time": BEGIN + timedelta(seconds=at)} for s, at in stamps]
    first = len(times) - new
    return SimpleNamespace(
        id="a",
        job={"timestamps": times},
        dask={"task": "m:f"},
        steps=[(each["status"], first + n + 1) for n, each in enumerate(times[first:])],
        new_attempts=attempts,
        log=SimpleNamespace(nbytes=nbytes),
    )


def taken(*changes: Any) -> Any:
    counts = JobCounts()
    counts.changed(changes)
    return counts.take()


def test_counts_have_the_time_in_the_queue_and_the_run_time_of_a_whole_life() -> None:
    found = taken(
        change(
            *((S.QUEUED, 0), (S.FETCHING_INPUT, 20), (S.RUNNING, 21), (S.SUCCESS, 30)),
            new=3,
            nbytes=7,
        )
    )
    assert found.counters == {("ended", "m:f", "SUCCESS"): 1, ("log_bytes", "m:f"): 7}
    assert found.histograms["queue", "m:f"].sum == 20
    assert found.histograms["run", "m:f"].sum == 10
    assert found.histograms["update_lag", ""].sum > 0


def test_counts_take_the_times_of_the_last_attempt() -> None:
    stamps = (
        *((S.QUEUED, 0), (S.RUNNING, 5), (S.QUEUED, 9), (S.RUNNING, 12)),
        (S.ERROR, 20),
    )
    found = taken(change(*stamps, new=3, attempts=1))
    assert found.counters == {("ended", "m:f", "ERROR"): 1, ("retries", "m:f"): 1}
    assert found.histograms["queue", "m:f"].sum == 3
    assert found.histograms["run", "m:f"].sum == 8


def test_counts_have_no_run_time_of_a_job_that_never_ran() -> None:
    found = taken(change((S.QUEUED, 0), (S.CANCELED, 5), new=1))
    assert found.counters == {("ended", "m:f", "CANCELED"): 1}
    assert [kind for kind, _ in found.histograms] == ["update_lag"]


def test_counts_leave_out_a_change_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    broken = change((S.QUEUED, 0), (S.SUCCESS, 1), new=1)
    broken.job = {}
    found = taken(broken, change((S.QUEUED, 0), (S.ERROR, 1), new=1))
    assert found.counters == {("ended", "m:f", "ERROR"): 1}
    assert caplog.messages == ["A change of job a is not counted"]


def test_counts_that_could_not_be_stored_come_again() -> None:
    counts = JobCounts()
    counts.created(["m:f", "m:g"])
    counts.changed([change((S.QUEUED, 0), (S.RUNNING, 2), new=1)])
    first = counts.take()
    counts.created(["m:f"])
    counts.changed([change((S.QUEUED, 0), (S.RUNNING, 3), new=1)])
    counts.put_back(first)
    found = counts.take()
    assert found.counters == {("created", "m:f"): 2, ("created", "m:g"): 1}
    assert found.histograms["queue", "m:f"].sum == 5
    assert sum(found.histograms["queue", "m:f"].counts) == 2
    assert not counts.take()


def test_counts_of_many_threads_are_complete() -> None:
    counts = JobCounts()

    def work() -> None:
        for _ in range(500):
            counts.created(["m:f"])
            total.append(counts.take().counters["created", "m:f"])

    total: list[int] = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(total) == 2000
