"""The thread that adds the counts of this process to the sums in the database.

It makes a request only when something has changed, or every :data:`GAUGES_INTERVAL_S`, by which the
others know that this process lives.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone

from pymongo.errors import PyMongoError

from girder_dask.plugin.metrics import counter_store, queue_counts
from girder_dask.plugin.metrics.counts import JobCounts, counts
from girder_dask.plugin.metrics.task_labels import TaskLabels
from girder_dask.utils.background import Guard, start_thread_once
from girder_dask.utils.process_identity import identity

__all__ = ["FLUSH_INTERVAL_S", "GAUGES_INTERVAL_S", "Flusher"]

logger = logging.getLogger(__name__)

#: Seconds between two looks at the counts: how far a scrape that another process answers may lag.
FLUSH_INTERVAL_S = 5.0

#: Seconds after which gauges that have not changed are stored again.
GAUGES_INTERVAL_S = 30.0

_THREAD_NAME = "girder-dask-metrics"


class Flusher:
    """What stores the counts and the gauges of this process.

    Parameters
    ----------
    gauges
        Returns the gauges of this process by name.
    totals
        Returns how often something has happened in this process so far, by name.
    open_index
        The index over the unfinished jobs.
    taken_from
        The counts.
    """

    def __init__(
        self,
        gauges: Callable[[], Mapping[str, float]],
        totals: Callable[[], Mapping[str, int]],
        open_index: str = "",
        taken_from: JobCounts = counts,
    ) -> None:
        self._gauges = gauges
        self._totals = totals
        self._seen: Mapping[str, int] = {}
        self._counts = taken_from
        self._lock = threading.Lock()
        self._stored: Mapping[str, float] = {}
        self._stored_at = -GAUGES_INTERVAL_S
        self._is_count_wanted = False
        #: The index over the unfinished jobs.
        self.open_index = open_index
        #: The labels of tasks.
        self.labels = TaskLabels()

    def start(self) -> None:
        """Start the thread, once in a process."""
        start_thread_once(_THREAD_NAME, self._work)

    def _work(self) -> None:
        guard = Guard(logger, "Storing metrics of jobs", expected=(PyMongoError,))
        count_guard = Guard(logger, "Counting unfinished jobs", expected=(PyMongoError,))
        while True:
            with guard:
                self.flush()
            with count_guard:
                self._count()
            time.sleep(max(FLUSH_INTERVAL_S, guard.delay_s))

    def want_count(self) -> None:
        """Let the thread count the unfinished jobs if the time has come. Returns at once."""
        self._is_count_wanted = True

    def _count(self) -> None:
        if self._is_count_wanted:
            self._is_count_wanted = False
            queue_counts.count_if_due(self.labels.known, self.open_index)

    def flush(self) -> None:
        """Store what has changed."""
        with self._lock:
            taken = self._counts.take()
            totals = self._totals()
            for name, total in totals.items():
                if (more := total - self._seen.get(name, 0)) > 0:
                    taken.events[name] += more
            self._seen = totals
            if taken:
                try:
                    counter_store.add(taken, self.labels.label)
                except Exception:
                    self._counts.put_back(taken)
                    raise
            gauges, now = self._gauges(), time.monotonic()
            if gauges != self._stored or now - self._stored_at >= GAUGES_INTERVAL_S:
                counter_store.store_gauges(identity(), gauges, datetime.now(timezone.utc))
                self._stored, self._stored_at = gauges, now
