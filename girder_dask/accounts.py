"""What runs say of their own ends, which is waited for when Dask has seen them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Accounts"]

# How long the account of a run is waited for when Dask has seen its end, and how often
# it is looked whether its worker is still there.
_ACCOUNT_TIME = 30.0
_PAUSE = 0.5


class Accounts:
    """Accounts of runs that are waited for. To be used on the scheduler's event loop.

    Parameters
    ----------
    is_open
        Says whether the end of the job under a key is not known yet.
    is_there
        Says whether a worker is there.
    """

    def __init__(self, is_open: Callable[[str], bool], is_there: Callable[[str], bool]) -> None:
        self._is_open = is_open
        self._is_there = is_there
        self._waiting: set[asyncio.Task[None]] = set()

    def unless_told(self, key: str, worker: str | None, then: Callable[[], None]) -> None:
        """Act on an end that Dask saw, unless the run's own account of it still comes.

        The account travels beside Dask's message, so it may be a moment later; it can no
        longer come when the worker is gone.
        """
        if not self._is_open(key):
            return
        task = asyncio.get_running_loop().create_task(self._wait(key, worker))
        self._waiting.add(task)

        def act(finished: asyncio.Task[None]) -> None:
            self._waiting.discard(finished)
            if not finished.cancelled() and self._is_open(key):
                then()

        task.add_done_callback(act)

    async def _wait(self, key: str, worker: str | None) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _ACCOUNT_TIME
        while self._is_open(key) and loop.time() < deadline:
            await asyncio.sleep(_PAUSE)
            if worker is not None and not self._is_there(worker):
                return

    def close(self) -> None:
        """Wait no more."""
        for task in self._waiting:
            task.cancel()
