"""The values that stay on the cluster after their jobs have ended.

A value that Girder has is let go of as soon as no other job needs it. One that Girder does
not have, since it is too large, is kept for a while. It stays longer while jobs that are to
run need it, or while somebody else, such as a notebook, wants it of Dask.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from girder_dask.scheduler.cluster import Holder, Timer
from girder_dask.utils.background import Guard

__all__ = ["RetainedResults"]

logger = logging.getLogger(__name__)

# How often it is looked whether a value whose time is over is still wanted.
_LOOK_AGAIN = 30.0


@dataclass(slots=True)
class _Value:
    job_id: str
    key: str
    nbytes: int
    until: float


class RetainedResults:
    """Values on the cluster, by the ids of their jobs.

    Parameters
    ----------
    holder
        Where the values are.
    needed
        Says whether a job that is to run needs the value of a job.
    seconds
        How long a value that nobody needs is kept.
    nbytes
        How many bytes of such values are kept; the oldest go first.
    clock
        Seconds that only grow.
    """

    def __init__(
        self,
        holder: Holder,
        needed: Callable[[str], bool],
        *,
        seconds: float = 600.0,
        nbytes: int = 2 << 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._holder = holder
        self._needed = needed
        self._seconds = seconds
        self._limit = nbytes
        self._clock = clock
        self._values: dict[str, _Value] = {}  # oldest first
        self._jobs: dict[str, str] = {}
        self._timer: Timer | None = None
        self._guard = Guard(
            logger, "Letting go of values that nobody needs", max_delay_s=_LOOK_AGAIN
        )
        #: Bytes of all values that are kept.
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: str) -> bool:
        return key in self._jobs

    def key(self, job_id: str) -> str | None:
        """Return the key of the value of a job, if it is kept."""
        value = self._values.get(job_id)
        return None if value is None else value.key

    def add(self, job_id: str, key: str, nbytes: int, *, stored: bool) -> None:
        """Keep a value for as long as it is good for.

        Parameters
        ----------
        stored
            Whether Girder has it too.
        """
        if stored and not self._needed(job_id):
            self._holder.drop([key])
            return
        now = self._clock()
        self.lose(key)
        self._values[job_id] = _Value(job_id, key, nbytes, now if stored else now + self._seconds)
        self._jobs[key] = job_id
        self.nbytes += nbytes
        self._bound()

    def lose(self, key: str) -> None:
        """Take note that a value is there no longer."""
        job_id = self._jobs.pop(key, None)
        if job_id is not None:
            self.nbytes -= self._values.pop(job_id).nbytes

    def release(self, job_id: str) -> None:
        """Keep the value of a job no longer, whoever needs it."""
        value = self._values.get(job_id)
        if value is not None:
            self.lose(value.key)
            self._holder.drop([value.key])

    def reconsider(self, job_id: str) -> None:
        """Take note that no job needs a value any more."""
        value = self._values.get(job_id)
        if value is None or self._needed(job_id):
            return
        if value.until <= self._clock() and not self._holder.is_wanted(value.key):
            self.release(job_id)
            return
        if self._timer is not None:
            self._timer.cancel()  # its time may be over before that of all others
            self._timer = None
        self._bound()

    def _free(self) -> list[_Value]:
        return [
            value
            for value in self._values.values()
            if not self._needed(value.job_id) and not self._holder.is_wanted(value.key)
        ]

    def _bound(self) -> None:
        """Hold to the number of bytes, and see to it that the rest is looked at in time."""
        if self.nbytes > self._limit:
            free = self._free()
            excess = sum(value.nbytes for value in free) - self._limit
            for value in free:
                if excess <= 0:
                    break
                excess -= value.nbytes
                self.release(value.job_id)
        if self._timer is None:
            self._set_timer()

    def _set_timer(self) -> None:
        # What jobs need is looked at when they need it no longer.
        times = [v.until for v in self._values.values() if not self._needed(v.job_id)]
        if times:
            pause = max(min(times) - self._clock(), 0.0)
            self._timer = self._holder.call_later(pause, self._expire)

    def _expire(self) -> None:
        self._timer = None
        with self._guard:
            self._let_go_of_old()
        if self._guard.failed and self._timer is None:
            self._timer = self._holder.call_later(self._guard.delay_s, self._expire)

    def _let_go_of_old(self) -> None:
        now = self._clock()
        for value in self._free():
            if value.until <= now:
                self.release(value.job_id)
        for value in self._values.values():
            if value.until <= now:
                value.until = now + _LOOK_AGAIN
        self._bound()
