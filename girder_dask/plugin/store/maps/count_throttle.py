"""Throttle of the counts of map parents, which delays parents that take long to count."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["CountThrottle"]

logger = logging.getLogger(__name__)

# The largest share of the time that is spent on counting one large parent.
_MAX_COUNTING_SHARE = 0.03


@dataclass(slots=True)
class _Pause:
    """The pause in counting a large parent, which ends early if all jobs that were left end."""

    until: float
    left: int


class CountThrottle:
    """The throttle that decides when parents are counted. Thread-safe.

    Parameters
    ----------
    count
        Counts parents. Returns the number of unfinished jobs of those parents that are too large
        to be counted each time.

    Examples
    --------
    >>> counted = []
    >>> throttle = CountThrottle(lambda ids: counted.extend(ids) or {})
    >>> throttle.count_soon({'5f3c': 1})
    >>> counted
    ['5f3c']
    """

    def __init__(self, count: Callable[[Sequence[Any]], Mapping[Any, int]]) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._paused: dict[Any, _Pause] = {}
        self._scheduled: set[Any] = set()
        self._ended: Counter[Any] = Counter()  # since the last count began

    def count_soon(self, changed: Mapping[Any, int]) -> None:
        """Count parents now, or schedule a count.

        Parameters
        ----------
        changed
            The ids of parents, and how many of their jobs have ended since the last call.
        """
        now = time.monotonic()
        with self._lock:
            self._forget(now)
            self._ended.update(changed)
            due = []
            for parent in changed:
                pause = self._paused.get(parent)
                if pause is None or self._ended[parent] >= pause.left:
                    due.append(parent)
                elif parent not in self._scheduled:
                    self._scheduled.add(parent)
                    timer = threading.Timer(pause.until - now, self._count_later, [parent])
                    timer.daemon = True
                    timer.start()
        if due:
            self._count_now(due)

    def _forget(self, now: float) -> None:
        for parent in [p for p, pause in self._paused.items() if pause.until <= now]:
            del self._paused[parent]
            del self._ended[parent]

    def _count_later(self, parent: Any) -> None:
        with self._lock:
            self._scheduled.discard(parent)
        try:
            self._count_now([parent])
        except Exception:
            # The parent is counted after its next change, or with the next claim of a scheduler.
            logger.exception("The jobs of the map %s could not be counted", parent)

    def _count_now(self, parents: Sequence[Any]) -> None:
        start = time.monotonic()
        with self._lock:
            for parent in parents:
                self._ended[parent] = 0
        left = self._count(parents)
        end = time.monotonic()
        until = end + (end - start) / _MAX_COUNTING_SHARE
        with self._lock:
            for parent in parents:
                if parent in left:
                    self._paused[parent] = _Pause(until, left[parent])
                else:
                    self._paused.pop(parent, None)
                    del self._ended[parent]
