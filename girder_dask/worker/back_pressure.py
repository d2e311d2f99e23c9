"""Back-pressure: a run with much output pauses until the scheduler has room for more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from girder_dask.utils.background import Guard
from girder_dask.utils.backoff import Backoff
from girder_dask.worker.run_sink import RunSink

__all__ = ["AwaitRoom", "BackPressure"]

#: Waits until the scheduler has room for more output of a job. Returns True if it has.
AwaitRoom = Callable[[str], Awaitable[bool]]

# Between two requests while the scheduler has no room.
_NO_ROOM_BACKOFF = Backoff(first_s=0.2, max_s=0.2)


class BackPressure:
    """The sinks that wait until the scheduler has room, for use on one event loop only.

    Parameters
    ----------
    await_room
        Asks the scheduler. None if it always has room.
    guard
        Guards ``await_room``.
    """

    def __init__(self, await_room: AwaitRoom | None, guard: Guard) -> None:
        self._await_room = await_room
        self._guard = guard
        self._waiting: dict[RunSink, asyncio.Task[None]] = {}

    def hold(self, sink: RunSink) -> None:
        """Have a sink resume when the scheduler has room for its output."""
        if self._await_room is None:
            sink.resume()
        elif sink not in self._waiting:
            waiting = self._resume_later(self._await_room, sink)
            self._waiting[sink] = asyncio.create_task(waiting, name="girder-dask room")

    async def _resume_later(self, await_room: AwaitRoom, sink: RunSink) -> None:
        try:
            while not sink.ended and not await self._has_room(await_room, sink):
                pass
        finally:
            del self._waiting[sink]
            sink.resume()

    async def _has_room(self, await_room: AwaitRoom, sink: RunSink) -> bool:
        with self._guard:
            if await await_room(sink.spec.id):
                return True
        await asyncio.sleep(self._guard.delay_s or _NO_ROOM_BACKOFF.delay_s(1))
        return False

    async def close(self) -> None:
        """Have all sinks resume now, and hold none from now on."""
        self._await_room = None
        waiting = list(self._waiting.values())
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
