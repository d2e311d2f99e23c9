"""When to send what has gathered.

A sender that is idle sends at once. One that is busy sends once in an interval. Something
urgent need not wait for that, as long as there is little of it. What somebody waits for never
does.
"""

from __future__ import annotations

import asyncio

__all__ = ["Throttle"]


class Throttle:
    """Says when it is time to send. To be used on one event loop.

    Parameters
    ----------
    interval
        Least seconds from the end of one sending to the beginning of the next, while
        nothing is urgent.
    burst
        How many urgent sendings may follow each other at once. When they are used up, one
        is given back in each ``spacing``. None for any number.
    spacing
        Seconds, by default ``interval``.
    rest
        How many times as long as the last sending took ``spacing`` is, if that is less.
    """

    def __init__(
        self,
        interval: float,
        burst: int | None = None,
        spacing: float | None = None,
        rest: float | None = None,
    ) -> None:
        self._interval = interval
        self._spacing = self._most = interval if spacing is None else spacing
        self._rest = rest
        self._begun = 0.0
        self._burst = burst
        self._credit = float(burst or 0)
        self._last = float("-inf")
        self._something = asyncio.Event()
        self._urgent = asyncio.Event()
        self._at_once = asyncio.Event()

    def poke(self, *, urgent: bool, at_once: bool = False) -> None:
        """Say that there is something to send, and whether it is urgent, or waited for."""
        self._something.set()
        if urgent:
            self._urgent.set()
        if at_once:
            self._urgent.set()
            self._at_once.set()

    async def turn(self) -> None:
        """Wait until there is something to send and it is time to send it."""
        await self._something.wait()
        remaining = self._last + self._interval - asyncio.get_running_loop().time()
        if remaining > 0 and not self._urgent.is_set():
            await _wait(self._urgent, remaining)
        remaining = (1.0 - self._credit_now()) * self._spacing
        if remaining > 0 and self._urgent.is_set() and not self._at_once.is_set():
            await _wait(self._at_once, remaining)
        else:
            await asyncio.sleep(0)  # what comes in the same moment goes with it
        for event in (self._something, self._urgent, self._at_once):
            event.clear()
        self._begun = asyncio.get_running_loop().time()

    def sent(self) -> None:
        """Say that a sending has ended."""
        # What is not urgent never waits for credit, and makes no debt.
        self._credit = max(self._credit_now() - 1.0, 0.0)
        self._last = asyncio.get_running_loop().time()
        if self._rest is not None:
            self._spacing = min(self._most, self._rest * (self._last - self._begun))

    def _credit_now(self) -> float:
        """Return how many urgent sendings may follow each other now."""
        if self._burst is None or self._spacing <= 0:
            return 1.0
        gained = (asyncio.get_running_loop().time() - self._last) / self._spacing
        return min(self._credit + gained, float(self._burst))


async def _wait(event: asyncio.Event, timeout: float) -> None:
    """Wait for an event or the time. Unlike ``wait_for``, it never swallows a cancellation."""
    waiter = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([waiter], timeout=timeout)
    finally:
        waiter.cancel()
