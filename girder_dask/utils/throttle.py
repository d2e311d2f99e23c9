"""A throttle that coalesces messages into batches.

An idle sender sends at once, a busy one once in an interval. Urgent messages do not wait for the
interval, as long as a token bucket has credit. Messages that a caller waits for never wait.
"""

from __future__ import annotations

import asyncio
import contextlib

__all__ = ["Throttle"]


class Throttle:
    """Waits until the next batch is due. For use on one event loop.

    Parameters
    ----------
    interval_s
        Seconds from the end of one batch to the beginning of the next at least, unless a message
        is urgent.
    burst
        The size of the token bucket: urgent batches that may follow each other at once. One token
        returns in each ``spacing``. None for any number.
    spacing
        Seconds for one token. By default ``interval_s``.
    rest
        A factor: ``spacing`` is at most ``rest`` times the duration of the last batch.
    full_batch
        The number of messages from which this holds. The rest after a smaller batch is shorter in
        proportion: few messages are not held back, and many fill their batches anyway.
    """

    def __init__(
        self,
        interval_s: float,
        burst: int | None = None,
        spacing: float | None = None,
        rest: float | None = None,
        full_batch: int = 1,
    ) -> None:
        self._interval_s = interval_s
        self._spacing = self._max_spacing = interval_s if spacing is None else spacing
        self._rest = rest
        self._full_batch = full_batch
        self._begun = 0.0
        self._burst = burst
        self._credit = float(burst or 0)
        self._last_end = float("-inf")
        self._pending = asyncio.Event()
        self._urgent = asyncio.Event()
        self._at_once = asyncio.Event()

    def poke(self, *, urgent: bool, at_once: bool = False) -> None:
        """Record that there is a message, and whether it is urgent or a caller waits for it."""
        self._pending.set()
        if urgent:
            self._urgent.set()
        if at_once:
            self._urgent.set()
            self._at_once.set()

    async def turn(self) -> None:
        """Wait until there is a message and the next batch is due."""
        await self._pending.wait()
        remaining = self._last_end + self._interval_s - asyncio.get_running_loop().time()
        if remaining > 0 and not self._urgent.is_set():
            await _wait(self._urgent, remaining)
        remaining = (1.0 - self._credit_now()) * self._spacing
        if remaining > 0 and self._urgent.is_set() and not self._at_once.is_set():
            await _wait(self._at_once, remaining)
        else:
            await asyncio.sleep(0)  # messages of the same moment go into the same batch
        for event in (self._pending, self._urgent, self._at_once):
            event.clear()
        self._begun = asyncio.get_running_loop().time()

    def sent(self, count: int) -> None:
        """Record the end of a batch of ``count`` messages."""
        # Batches that are not urgent neither wait for tokens nor use more than there are.
        self._credit = max(self._credit_now() - 1.0, 0.0)
        self._last_end = asyncio.get_running_loop().time()
        if self._rest is not None:
            rest = self._rest * min(1.0, count / self._full_batch)
            self._spacing = min(self._max_spacing, rest * (self._last_end - self._begun))

    def _credit_now(self) -> float:
        """Return the tokens in the bucket: urgent batches that may follow each other now."""
        if self._burst is None or self._spacing <= 0:
            return 1.0
        gained = (asyncio.get_running_loop().time() - self._last_end) / self._spacing
        return min(self._credit + gained, float(self._burst))


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for an event or the timeout."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
