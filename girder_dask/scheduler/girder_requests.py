"""The scheduler's requests to Girder, made in threads so that the event loop never waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from girder_dask.http.scheduler_api import SchedulerApi
from girder_dask.scheduler.delivery import Acknowledgement
from girder_dask.scheduler.reconcilers import HeldJob

__all__ = ["GirderRequests"]

_T = TypeVar("_T")


class _Connection:
    """A connection to Girder, and the only thread that uses it."""

    def __init__(self, name: str, api: SchedulerApi) -> None:
        self.api = api
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"girder-dask-{name}")

    async def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.api.close()


class GirderRequests:
    """The requests of one scheduler. Updates have a connection of their own.

    Parameters
    ----------
    scheduler_id
        The id of this run of the scheduler.
    make_api
        Makes a connection.
    """

    def __init__(self, scheduler_id: str, make_api: Callable[[], SchedulerApi]) -> None:
        self._id = scheduler_id
        self._updates = _Connection("updates", make_api())
        self._claims = _Connection("claims", make_api())

    async def update(
        self, updates: list[dict[str, Any]], acknowledgements: list[Acknowledgement]
    ) -> Mapping[str, list[str]]:
        """Post updates and acknowledgements; return ids of jobs by kind of answer."""
        api = self._updates.api
        return await self._updates.call(api.update, self._id, updates, acknowledgements)

    async def claim(
        self, limit: int, page_after: str | None, missing: Sequence[HeldJob]
    ) -> dict[str, Any]:
        """Claim unfinished jobs (:meth:`girder_dask.http.scheduler_api.SchedulerApi.claim`)."""
        api = self._claims.api
        return await self._claims.call(api.claim, self._id, limit, page_after, missing)

    async def states(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the documents of jobs by id, without deleted jobs."""
        return await self._claims.call(self._claims.api.states, ids)

    async def check_credential(self) -> dict[str, Any]:
        """Check that the API key may update jobs; return Girder's description of itself."""
        return await self._claims.call(self._claims.api.check_credential)

    def close(self) -> None:
        """Close both connections."""
        self._updates.close()
        self._claims.close()
