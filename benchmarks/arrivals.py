"""Observation of the times at which jobs reach SUCCESS, from outside the systems."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from benchmarks.side import SUCCESS, Side

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Arrivals"]


class Arrivals:
    """Context manager that observes when the jobs started within it reach SUCCESS.

    The titles of the jobs are numbers. A thread of this process, which belongs to no system,
    queries the database for the jobs from the oldest unfinished one on. The query scans the
    index of the ids.

    Parameters
    ----------
    side
        The system.
    pause
        Seconds between two queries.
    """

    def __init__(self, side: Side, pause: float) -> None:
        #: The time at which each job was seen in SUCCESS (``time.monotonic()``), by its number.
        self.at: dict[int, float] = {}
        self._side = side
        self._pause = pause
        self._thread = threading.Thread(target=self._watch, name="arrivals", daemon=True)
        self._stopped = threading.Event()
        newest = side.jobs.find_one({}, {"_id": 1}, sort=[("_id", -1)])
        self._low = newest["_id"] if newest else None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def wait(self, count: int, timeout: float) -> None:
        """Wait until ``count`` jobs have reached SUCCESS, for at most ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while len(self.at) < count:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise TimeoutError(f"{self._side.name}: {len(self.at)} of {count} jobs arrived")
            time.sleep(self._pause)

    def _watch(self) -> None:
        while not self._stopped.wait(self._pause):
            self._query()

    def _query(self) -> None:
        query: dict[str, Any] = {"_id": {"$gt": self._low}} if self._low else {}
        found = list(self._side.jobs.find(query, {"title": 1, "status": 1}).sort("_id", 1))
        now = time.monotonic()
        for job in found:
            if job["status"] == SUCCESS:
                self.at.setdefault(int(job["title"]), now)
        for job in found:
            if job["status"] != SUCCESS:
                break
            self._low = job["_id"]
