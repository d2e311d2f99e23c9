"""The results that stay on the cluster after their jobs have ended.

A result that Girder has stored is released once no dependent job needs it. One that is too large
for Girder is retained for a while. It stays longer while jobs depend on it, or while another
client of Dask, such as a notebook, wants it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from girder_dask.scheduler.cluster_interface import Cluster
from girder_dask.scheduler.dependencies import DependencyGraph
from girder_dask.utils.background import Guard

__all__ = ["RetainedResults"]

logger = logging.getLogger(__name__)

# How often an expired result that is still wanted is checked again.
_RECHECK_S = 30.0


@dataclass(slots=True)
class _Result:
    job_id: str
    key: str
    nbytes: int
    expires_at: float


class RetainedResults:
    """Results on the cluster, by the ids of their jobs.

    Parameters
    ----------
    cluster
        The Dask cluster.
    graph
        The dependencies between jobs.
    ttl_s
        Seconds for which a result that no job needs is retained.
    max_bytes
        How many bytes of such results are retained; the oldest are released first.
    """

    def __init__(
        self,
        cluster: Cluster,
        graph: DependencyGraph,
        *,
        ttl_s: float = 600.0,
        max_bytes: int = 2 << 30,
    ) -> None:
        self._cluster = cluster
        self._graph = graph
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._results: dict[str, _Result] = {}  # oldest first
        self._job_ids: dict[str, str] = {}
        self._cancel_timer: Callable[[], None] | None = None
        self._guard = Guard(logger, "Releasing results that nothing needs", max_delay_s=_RECHECK_S)
        #: Bytes of all retained results.
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._results)

    def __contains__(self, key: str) -> bool:
        return key in self._job_ids

    def key(self, job_id: str) -> str | None:
        """Return the key of the result of a job, if it is retained."""
        result = self._results.get(job_id)
        return None if result is None else result.key

    def add(self, job_id: str, key: str, nbytes: int, *, stored: bool) -> None:
        """Retain a result for as long as it is of use.

        Parameters
        ----------
        stored
            Whether Girder has it too.
        """
        if stored and not self._graph.has_dependents(job_id):
            self._cluster.release([key])
            return
        now = self._cluster.time()
        self.on_lost(key)
        self._results[job_id] = _Result(job_id, key, nbytes, now if stored else now + self._ttl_s)
        self._job_ids[key] = job_id
        self.nbytes += nbytes
        self._enforce_limits()

    def on_lost(self, key: str) -> None:
        """Handle a key that is no longer on the cluster."""
        job_id = self._job_ids.pop(key, None)
        if job_id is not None:
            self.nbytes -= self._results.pop(job_id).nbytes

    def release(self, job_id: str) -> None:
        """Release the result of a job, even if others need it."""
        result = self._results.get(job_id)
        if result is not None:
            self.on_lost(result.key)
            self._cluster.release([result.key])

    def release_if_unneeded(self, job_id: str) -> None:
        """Release a result that no job depends on any longer, now or when it expires."""
        result = self._results.get(job_id)
        if result is None or self._graph.has_dependents(job_id):
            return
        if result.expires_at <= self._cluster.time() and not self._cluster.is_wanted(result.key):
            self.release(job_id)
            return
        if self._cancel_timer is not None:
            self._cancel_timer()  # this one may expire before all others
            self._cancel_timer = None
        self._enforce_limits()

    def _unneeded(self) -> list[_Result]:
        return [
            result
            for result in self._results.values()
            if not self._graph.has_dependents(result.job_id)
            and not self._cluster.is_wanted(result.key)
        ]

    def _enforce_limits(self) -> None:
        """Release results beyond the limit of bytes, and set a timer for those that expire."""
        if self.nbytes > self._max_bytes:
            unneeded = self._unneeded()
            excess = sum(result.nbytes for result in unneeded) - self._max_bytes
            for result in unneeded:
                if excess <= 0:
                    break
                excess -= result.nbytes
                self.release(result.job_id)
        if self._cancel_timer is None:
            self._set_timer()

    def _set_timer(self) -> None:
        # Results that jobs need are checked once they are no longer needed.
        times = [
            result.expires_at
            for result in self._results.values()
            if not self._graph.has_dependents(result.job_id)
        ]
        if times:
            delay_s = max(min(times) - self._cluster.time(), 0.0)
            self._cancel_timer = self._cluster.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._cancel_timer = None
        with self._guard:
            self._release_expired()
        if self._guard.failed and self._cancel_timer is None:
            self._cancel_timer = self._cluster.call_later(self._guard.delay_s, self._on_timer)

    def _release_expired(self) -> None:
        now = self._cluster.time()
        for result in self._unneeded():
            if result.expires_at <= now:
                self.release(result.job_id)
        for result in self._results.values():
            if result.expires_at <= now:
                result.expires_at = now + _RECHECK_S
        self._enforce_limits()
