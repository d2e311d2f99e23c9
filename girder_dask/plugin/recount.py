"""When the parents of maps are counted: at once, or a little later where a count takes long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

__all__ = ["Recount"]

logger = logging.getLogger(__name__)

# The share of the time that may be spent on counting one large parent.
_SHARE = 0.1


class Recount:
    """Has parents counted. Any thread may use it.

    Parameters
    ----------
    count
        Counts some of them, and returns those that are too large to be counted each time.

    Examples
    --------
    >>> counted = []
    >>> recount = Recount(lambda ids: counted.extend(ids) or ())
    >>> recount.ask(['5f3c'])
    >>> counted
    ['5f3c']
    """

    def __init__(self, count: Callable[[Sequence[Any]], Collection[Any]]) -> None:
        self._count = count
        self._lock = threading.Lock()
        self._resting: dict[Any, float] = {}  # until when
        self._later: set[Any] = set()

    def ask(self, ids: Iterable[Any]) -> None:
        """Count parents, or see to it that they are counted soon."""
        now = time.monotonic()
        with self._lock:
            self._resting = {i: until for i, until in self._resting.items() if until > now}
            due = []
            for i in ids:
                if i not in self._resting:
                    due.append(i)
                elif i not in self._later:
                    self._later.add(i)
                    timer = threading.Timer(self._resting[i] - now, self._come_back, [i])
                    timer.daemon = True
                    timer.start()
        if due:
            self._count_now(due)

    def _come_back(self, parent: Any) -> None:
        with self._lock:
            self._later.discard(parent)
            self._resting.pop(parent, None)
        try:
            self._count_now([parent])
        except Exception:
            # It is counted when next something is heard of it, or when a scheduler asks for jobs.
            logger.exception("The jobs under %s could not be counted", parent)

    def _count_now(self, parents: Sequence[Any]) -> None:
        start = time.monotonic()
        large = self._count(parents)
        if large:
            end = time.monotonic()
            with self._lock:
                self._resting |= dict.fromkeys(large, end + (end - start) / _SHARE)
