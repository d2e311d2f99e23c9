"""What is said in jobs that wait because this Girder does not reach the scheduler.

Nobody else can tell their users. It holds until a scheduler says that it has the job.
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

__all__ = ["Unreached", "mark", "unmark"]

logger = logging.getLogger(__name__)

#: Most jobs that are read and written at once, and the seconds between two times. They take
#: turns with what else this Girder does.
_MAX_JOBS_PER_QUERY = 500
_PAUSE_S = 1.0

#: Most jobs that are remembered by their ids. Any others are found at the next look.
_MAX_REMEMBERED_JOBS = 10_000

#: Seconds between two looks for jobs that nobody has named, such as those of a scheduler that
#: is heard no more.
_SCAN_INTERVAL_S = 15.0

#: Seconds after which a scheduler that has said nothing is taken for gone. It asks for jobs
#: every ``girder.scheduler.pull-interval``.
_SILENCE_S = 30.0


class Unreached:
    """Says in jobs that the scheduler cannot be reached, while it cannot. Any thread may use it.

    It works in a thread of its own, which is there only as long as it is needed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._reason: str | None = None
        self._ids: deque[str] = deque(maxlen=_MAX_REMEMBERED_JOBS)
        self._next_look = 0.0
        self._heard: dict[str, float] = {}
        what = "Saying in jobs why they wait"
        self._guard = Guard(logger, what, expected=(PyMongoError,), max_delay_s=_SCAN_INTERVAL_S)

    def hear(self, reason: str | None, job_ids: Iterable[str] = ()) -> None:
        """Take note of why the scheduler cannot be reached, None if it can. Returns at once.

        ``job_ids`` are jobs that were not delivered.
        """
        with self._lock:
            if reason != self._reason:
                self._next_look = 0.0
            self._reason = reason
            self._ids.extend(job_ids)
            # A thread does not survive a fork; the child starts its own.
            if reason is not None and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(
                    target=self._run, name="girder-dask-unreached", daemon=True
                )
                self._thread.start()
        self._wake.set()

    def heard(self, scheduler: str) -> None:
        """Take note that a scheduler has spoken to this Girder."""
        self._heard[scheduler] = time.monotonic()

    def _speaking(self) -> list[str]:
        since = time.monotonic() - _SILENCE_S
        for scheduler, moment in list(self._heard.items()):
            if moment < since:
                self._heard.pop(scheduler, None)
        return list(self._heard)

    def _run(self) -> None:
        while True:
            # The link may be up again in a moment.
            time.sleep(_PAUSE_S)
            with self._lock:
                reason = self._reason
                if reason is None:
                    self._thread = None
                    self._ids.clear()
                    return
                self._wake.clear()
                ids = [self._ids.popleft() for _ in range(min(_MAX_JOBS_PER_QUERY, len(self._ids)))]
            left = self._next_look - time.monotonic()
            if ids:
                self._mark(reason, ids)
            elif left > 0:
                self._wake.wait(left)
            elif self._mark(reason) < _MAX_JOBS_PER_QUERY:
                self._next_look = time.monotonic() + _SCAN_INTERVAL_S

    def _mark(self, reason: str, ids: Sequence[str] | None = None) -> int:
        with self._guard:
            return mark(reason, ids, besides=self._speaking())
        return 0


def mark(
    reason: str,
    job_ids: Sequence[str] | None = None,
    *,
    besides: Sequence[str] = (),
    limit: int = _MAX_JOBS_PER_QUERY,
) -> int:
    """Say in jobs of the queue why they wait, where it is not said yet.

    Parameters
    ----------
    reason
        Why the scheduler cannot be reached.
    job_ids
        The jobs, by default all.
    besides
        Schedulers that speak to Girder all the same. Theirs are left alone.
    limit
        The most jobs.

    Returns
    -------
    int
        In how many it was said.
    """
    query: dict[str, Any] = {
        "dask.open": True,
        "dask.scheduler": {"$nin": list(besides)},
        "status": int(JobStatus.QUEUED),
        "dask.waits": {"$ne": reason},
    }
    if job_ids is None:
        return _write(query, reason, limit, models.OPEN_INDEX)
    query["_id"] = {"$in": [ObjectId(job_id) for job_id in job_ids]}
    return _write(query, reason, limit)


def unmark(scheduler: str, limit: int = _MAX_JOBS_PER_QUERY) -> int:
    """Take it back in the jobs of a scheduler that speaks, and return in how many."""
    query = {"dask.unreached": True, "dask.scheduler": scheduler}
    return _write(query, "", limit, models.UNREACHED_INDEX)


def _write(query: dict[str, Any], reason: str, limit: int, index: str | None = None) -> int:
    jobs = models.collection(Job()).find(query, WITHOUT_LOG, limit=limit, hint=index)
    changes = [JobChange(job) for job in quarantine.filter_valid(jobs)]
    for change in changes:
        change.set_pending_reason(reason, unreached=bool(reason))
    publish(save(changes)[0])
    return len(changes)
