"""The result of a run, as Girder keeps it."""

from __future__ import annotations

import threading

from girder_dask.jobs import JobStatus
from girder_dask.protocol.payload import Unpicklable, pack_value
from tests.support.run_worker import Worker

S = JobStatus


def test_a_value_that_cannot_be_pickled_is_not_kept_but_is_no_error(worker: Worker) -> None:
    value = worker.outcome(threading.Lock)
    assert isinstance(value, Unpicklable)  # Dask can bring that to whoever asks
    assert value.reason == worker.end.error
    assert worker.statuses()[-1] == S.SUCCESS
    assert worker.end.result is None
    assert worker.end.error is not None
    assert worker.end.error.startswith("it cannot be pickled (TypeError: cannot pickle")


def test_a_value_that_is_too_large_is_not_kept_but_is_no_error(worker: Worker) -> None:
    size = len(pack_value(b"x" * 6000))
    assert worker.outcome(lambda: b"x" * 6000) == b"x" * 6000
    assert worker.statuses()[-1] == S.SUCCESS
    assert worker.end.result is None
    assert worker.end.error == (
        f"it takes {size:,} bytes, more than the 1,000 that are kept with a job "
        "(girder.worker.max-result)"
    )
    assert f"girder_dask: the result is not kept with the job: {worker.end.error}." in worker.log()
