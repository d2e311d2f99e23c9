"""Reports in queued jobs that this Girder cannot reach the scheduler.

No other process can tell the users. The reason holds until a scheduler acknowledges the job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from bson import ObjectId
from girder_jobs.models.job import Job
from pymongo.errors import PyMongoError

from girder_dask.jobs import JobStatus
from girder_dask.plugin.store import models, quarantine
from girder_dask.plugin.store.job_change import JobChange
from girder_dask.plugin.store.updates import WITHOUT_LOG, publish, save
from girder_dask.utils.background import Guard
from girder_dask.utils.forks import reset_after_fork

__all__ = ["UnreachableReporter", "clear_reason", "write_reason"]

logger = logging.getLogger(__name__)

#: The most jobs that are read and written at once, and the seconds between two writes, so that
#: other work of this Girder is not held up.
_MAX_JOBS_PER_QUERY = 500
_PAUSE_S = 1.0

#: The most jobs that are remembered by their ids. The next scan finds the others.
_MAX_REMEMBERED_JOBS = 10_000

#: Seconds between two scans for all other jobs, such as those of a scheduler that is lost.
_SCAN_INTERVAL_S = 15.0

#: Seconds after its last request until a scheduler counts as lost. It claims jobs every
#: ``girder.scheduler.pull-interval``.
_SILENCE_S = 30.0


class UnreachableReporter:
    """Reporter that writes into queued jobs why the scheduler is unreachable. Thread-safe.

    It writes from a background thread, which exists only while the scheduler is unreachable.
    """

    def __init__(self) -> None:
        self._last_requests: dict[str, float] = {}
        what = "Writing into jobs why they wait"
        self._guard = Guard(logger, what, expected=(PyMongoError,), max_delay_s=_SCAN_INTERVAL_S)
        self._reset()
        reset_after_fork(self, UnreachableReporter._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._reason: str | None = None
        self._ids: deque[str] = deque(maxlen=_MAX_REMEMBERED_JOBS)
        self._next_scan = 0.0

    def set_reason(self, reason: str | None, job_ids: Iterable[str] = ()) -> None:
        """Record why the scheduler is unreachable, None if it is reachable. Returns at once.

        ``job_ids`` are jobs that were not delivered.
        """
        with self._lock:
            if reason != self._reason:
                self._next_scan = 0.0
            self._reason = reason
            self._ids.extend(job_ids)
            if reason is not None and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(
                    target=self._run, name="girder-dask-unreachable", daemon=True
                )
                self._thread.start()
        self._wake.set()

    def record_request(self, scheduler: str) -> None:
        """Record a request of a scheduler to this Girder."""
        self._last_requests[scheduler] = time.monotonic()

    def _active_schedulers(self) -> list[str]:
        since = time.monotonic() - _SILENCE_S
        for scheduler, moment in list(self._last_requests.items()):
            if moment < since:
                self._last_requests.pop(scheduler, None)
        return list(self._last_requests)

    def _run(self) -> None:
        while True:
            # The scheduler may be reachable again in a moment.
            time.sleep(_PAUSE_S)
            with self._lock:
                reason = self._reason
                if reason is None:
                    self._thread = None
                    self._ids.clear()
                    return
                self._wake.clear()
                ids = [self._ids.popleft() for _ in range(min(_MAX_JOBS_PER_QUERY, len(self._ids)))]
            left = self._next_scan - time.monotonic()
            if ids:
                self._write_reason(reason, ids)
            elif left > 0:
                self._wake.wait(left)
            elif self._write_reason(reason) < _MAX_JOBS_PER_QUERY:
                self._next_scan = time.monotonic() + _SCAN_INTERVAL_S

    def _write_reason(self, reason: str, ids: Sequence[str] | None = None) -> int:
        with self._guard:
            return write_reason(reason, ids, active_schedulers=self._active_schedulers())
        return 0


def write_reason(
    reason: str,
    job_ids: Sequence[str] | None = None,
    *,
    active_schedulers: Sequence[str] = (),
    limit: int = _MAX_JOBS_PER_QUERY,
) -> int:
    """Write into queued jobs why the scheduler is unreachable, unless they have that reason.

    Parameters
    ----------
    reason
        Why the scheduler is unreachable.
    job_ids
        The jobs, by default all.
    active_schedulers
        Schedulers that send requests to Girder nevertheless. Their jobs stay as they are.
    limit
        The most jobs.

    Returns
    -------
    int
        The number of jobs that were changed.
    """
    query: dict[str, Any] = {
        "dask.open": True,
        "dask.scheduler": {"$nin": list(active_schedulers)},
        "status": int(JobStatus.QUEUED),
        "dask.waits": {"$ne": reason},
    }
    if job_ids is None:
        return _write(query, reason, limit, models.OPEN_INDEX)
    query["_id"] = {"$in": [ObjectId(job_id) for job_id in job_ids]}
    return _write(query, reason, limit)


def clear_reason(scheduler: str, limit: int = _MAX_JOBS_PER_QUERY) -> int:
    """Remove the reason from the jobs of a scheduler that sends requests. Return their number."""
    query = {"dask.unreached": True, "dask.scheduler": scheduler}
    return _write(query, "", limit, models.UNREACHED_INDEX)


def _write(query: dict[str, Any], reason: str, limit: int, index: str | None = None) -> int:
    jobs = models.collection(Job()).find(query, WITHOUT_LOG, limit=limit, hint=index)
    changes = [JobChange(job) for job in quarantine.filter_valid(jobs)]
    for change in changes:
        change.set_pending_reason(reason, unreached=bool(reason))
    publish(save(changes)[0])
    return len(changes)
