"""What runs say of their own ends, which is waited for when Dask has seen them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from girder_dask.utils.background import Guard

__all__ = ["RunReports"]

logger = logging.getLogger(__name__)

# How long the account of a run is waited for when Dask has seen its end, and how often
# it is looked whether its worker is still there.
_ACCOUNT_TIME = 30.0
_PAUSE = 0.5


@dataclass(frozen=True, slots=True)
class _Awaited:
    key: str
    worker: str | None
    since: float
    then: Callable[[], None]


class RunReports:
    """Accounts of runs that are waited for. To be used on the scheduler's event loop.

    Each job is waited for, most for less than a tenth of a second. So one timer looks after all.

    Parameters
    ----------
    is_open
        Says whether the end of the job under a key is not known yet.
    is_there
        Says whether a worker is there.
    is_held_up
        Says whether workers are made to wait with what their runs say. Then no account is late.
    """

    def __init__(
        self,
        is_open: Callable[[str], bool],
        is_there: Callable[[str], bool],
        is_held_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_open = is_open
        self._is_there = is_there
        self._is_held_up = is_held_up
        self._held_up_until = float("-inf")
        self._awaited: list[_Awaited] = []
        self._look: asyncio.TimerHandle | None = None
        self._guard = Guard(logger, "The look for jobs whose end Dask saw")

    def await_report(self, key: str, worker: str | None, then: Callable[[], None]) -> None:
        """Act on an end that Dask saw, unless the run's own account of it still comes.

        The account travels beside Dask's message, so it may be a moment later; it can no
        longer come when the worker is gone.
        """
        if not self._is_open(key):
            return
        self._awaited.append(_Awaited(key, worker, asyncio.get_running_loop().time(), then))
        self._look_later()

    def _look_later(self) -> None:
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(_PAUSE, self._look_now)

    def _look_now(self) -> None:
        self._look = None
        with self._guard:
            if self._is_held_up():
                self._held_up_until = asyncio.get_running_loop().time()
        awaited, self._awaited = self._awaited, []
        for one in awaited:
            is_lost = False
            with self._guard:  # each, or the others would be waited for in vain
                if not self._is_open(one.key):
                    continue
                is_lost = self._is_lost(one)
            if is_lost:
                with Guard(logger, f"Acting on the end of {one.key} that Dask saw"):
                    one.then()
            else:
                self._awaited.append(one)
        if self._awaited:
            self._look_later()

    def _is_lost(self, one: _Awaited) -> bool:
        """Say whether an account comes no more."""
        now = asyncio.get_running_loop().time()
        gone = one.worker is not None and not self._is_there(one.worker)
        if gone:
            return now - one.since >= _PAUSE
        return now - max(one.since, self._held_up_until) >= _ACCOUNT_TIME

    def close(self) -> None:
        """Wait no more."""
        self._awaited.clear()
        if self._look is not None:
            self._look.cancel()
