"""When the parents of maps are counted: at once, or a little later where a count takes long."""

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

# The share of the time that may be spent on counting one large parent.
_MAX_COUNTING_SHARE = 0.03


@dataclass(slots=True)
class _Rest:
    """That a large parent is not counted for a while, unless as many jobs end as were left."""

    until: float
    left: int


class CountThrottle:
    """Has parents counted. Any thread may use it.

    Parameters
    ----------
    count
        Counts some of them. For those that are too large to be counted each time, it returns
        how many jobs have not ended.

    Examples
    --------
    >>> counted = []
    >>> recount = Recount(lambda ids: counted.extend(ids) or {})
    >>> recount.ask({'5f3c': 1})
    >>> counted
    ['5f3c']
    """

    def __init__(self, count: Callable[[Sequence[Any]], Mapping[Any, int]]) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._resting: dict[Any, _Rest] = {}
        self._later: set[Any] = set()
        self._ended: Counter[Any] = Counter()  # since the last count began

    def ask(self, changed: Mapping[Any, int]) -> None:
        """Count parents, or see to it that they are counted soon.

        Parameters
        ----------
        changed
            Ids of parents, and how many of their jobs have ended since they were asked for.
        """
        now = time.monotonic()
        with self._lock:
            self._forget(now)
            self._ended.update(changed)
            due = []
            for parent in changed:
                rest = self._resting.get(parent)
                if rest is None or self._ended[parent] >= rest.left:
                    due.append(parent)
                elif parent not in self._later:
                    self._later.add(parent)
                    timer = threading.Timer(rest.until - now, self._come_back, [parent])
                    timer.daemon = True
                    timer.start()
        if due:
            self._count_now(due)

    def _forget(self, now: float) -> None:
        for parent in [p for p, rest in self._resting.items() if rest.until <= now]:
            del self._resting[parent]
            del self._ended[parent]

    def _come_back(self, parent: Any) -> None:
        with self._lock:
            self._later.discard(parent)
        try:
            self._count_now([parent])
        except Exception:
            # It is counted when next something is heard of it, or when a scheduler asks for jobs.
            logger.exception("The jobs under %s could not be counted", parent)

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
                    self._resting[parent] = _Rest(until, left[parent])
                else:
                    self._resting.pop(parent, None)
                    del self._ended[parent]
