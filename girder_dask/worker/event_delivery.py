"""Delivery of batches of events to the scheduler: each is sent until it is acknowledged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from girder_dask.utils.background import Guard
from girder_dask.utils.backoff import Backoff
from girder_dask.utils.error_log import ErrorLog

__all__ = ["EventDelivery", "OnDropped", "SendBatch"]

logger = logging.getLogger(__name__)

#: Sends events with the name of the outbox and the number of the batch. Returns, once they are
#: acknowledged, the runs that the scheduler ignores from now on.
SendBatch = Callable[[str, int, list[dict[str, Any]]], Awaitable[Collection[str]]]
#: Called with these runs.
OnDropped = Callable[[Collection[str]], None]

# The fields that can be sent with every event.
_MINIMAL_FIELDS = {"version", "id", "attempt", "time", "status", "run", "worker"}
_RETRY_BACKOFF = Backoff(first_s=0.2, max_s=5.0)


class EventDelivery:
    """Delivery of batches one after the other, on one event loop.

    Parameters
    ----------
    send
        Delivers a batch.
    on_dropped
        Called with the runs that the scheduler ignores.
    outbox
        The name of the outbox.
    guard
        Guards ``on_dropped``.
    """

    def __init__(self, send: SendBatch, on_dropped: OnDropped, outbox: str, guard: Guard) -> None:
        self._send = send
        self._on_dropped = on_dropped
        self._outbox = outbox
        self._guard = guard
        self._errors = ErrorLog(logger, expected=(Exception,))
        self._number = 0
        #: The runs that the scheduler ignores.
        self.dropped: set[str] = set()

    async def deliver(self, batch: list[dict[str, Any]]) -> None:
        """Send a batch until it is acknowledged. An event that cannot be sent delays no other."""
        try:
            await self._insist(batch)
        except (TypeError, ValueError, OverflowError) as e:
            await self._deliver_apart(batch, e)

    async def _deliver_apart(self, batch: list[dict[str, Any]], error: Exception) -> None:
        if len(batch) > 1:
            half = len(batch) // 2
            await self.deliver(batch[:half])
            await self.deliver(batch[half:])
            return
        (event,) = batch
        minimal = {k: v for k, v in event.items() if k in _MINIMAL_FIELDS}
        logger.error("Part of an event of job %s cannot be sent: %r", event["id"], error)
        if minimal != event:
            await self.deliver([minimal])

    async def _insist(self, batch: list[dict[str, Any]]) -> None:
        self._number += 1
        for delay_s in _RETRY_BACKOFF.delays_s():
            try:
                dropped = await self._send(self._outbox, self._number, batch)
            except (TypeError, ValueError, OverflowError):  # it can never be sent
                raise
            except Exception as e:  # noqa: BLE001 - after any other error, the events are kept
                self._errors.failed(e, "The scheduler did not accept job events; trying again: %s")
                await asyncio.sleep(delay_s)
            else:
                self._errors.recovered("The scheduler accepts job events again")
                self.dropped.update(dropped)
                with self._guard:
                    self._on_dropped(dropped)
                return
