"""How updates of jobs reach Girder: tried again until they are taken, and in parts if need be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from girder_dask.errors import GirderError

__all__ = ["Post", "Receipt", "UpdateDelivery", "Verdicts"]

logger = logging.getLogger(__name__)

#: The id of a job, and the number of the attempt that the scheduler has in hand.
Receipt = tuple[str, int]

#: What Girder answers: ids of jobs by kinds.
Verdicts = Mapping[str, Sequence[str]]

#: Delivers updates, and which attempts this scheduler has in hand; returns Girder's verdicts.
Post = Callable[[list[dict[str, Any]], list[Receipt]], Awaitable[Verdicts]]

_TOO_LARGE = 413
# The length of a log that is not divided any more: no server refuses so little.
_SHORT = 4096
# What is left out of an update first, and what can be delivered of any.
_LARGE = {"progress", "result", "exception"}
_BARE = {"version", "id", "attempt", "sequence", "statuses"}
# What stands in a log for what could not be delivered of it.
_LOST = "\n[Part of the output could not be sent to Girder.]\n"


class UpdateDelivery:
    """Delivers one request after another.

    Parameters
    ----------
    post
        Coroutine function that delivers updates and receipts. GirderError means that they were
        not delivered, and they are tried again.
    number
        Returns the number of the next update of the attempt of a job, for one that is divided.
    waiting
        Returns how many jobs wait, for the log.
    retry_delay, retry_delay_max
        Seconds before a failed request is tried again, doubled each time up to the most.
    """

    def __init__(
        self,
        post: Post,
        number: Callable[[str, int], int],
        waiting: Callable[[], int],
        *,
        retry_delay: float,
        retry_delay_max: float,
    ) -> None:
        self._post = post
        self._number = number
        self._waiting = waiting
        self._retry_delay = retry_delay
        self._retry_delay_max = retry_delay_max
        #: Why the last request failed, or None if it did not.
        self.error: str | None = None
        self.requests = 0

    async def insist(self, updates: list[dict[str, Any]], receipts: list[Receipt]) -> Verdicts:
        """Deliver updates, as :class:`JobUpdate` writes them, and receipts.

        What Girder never takes is divided, so that one job holds up no other and a long log is
        not lost. What is left out of an update then is said in it.
        """
        delay = self._retry_delay
        while True:
            self.requests += 1
            try:
                verdicts = await self._post(updates, receipts)
            except Exception as e:  # noqa: BLE001 - whatever it is, the updates are kept
                if _is_permanent(e):
                    return await self._divide(updates, receipts, e)
                self._failed(e)
                await asyncio.sleep(delay)
                delay = min(delay * 2, self._retry_delay_max)
            else:
                if self.error is not None:
                    logger.info("Girder takes job updates again")
                self.error = None
                return verdicts

    def _failed(self, error: Exception) -> None:
        text = str(error) if isinstance(error, GirderError) else repr(error)
        if text != self.error:
            unexpected = None if isinstance(error, GirderError) else error
            logger.warning("%s %d jobs wait.", text, self._waiting(), exc_info=unexpected)
        self.error = text

    async def _divide(
        self, updates: list[dict[str, Any]], receipts: list[Receipt], error: Exception
    ) -> Verdicts:
        if updates and receipts:
            first = await self.insist(updates, [])
            return _merged(first, await self.insist([], receipts))
        if len(receipts) > 1:
            half = len(receipts) // 2
            first = await self.insist([], receipts[:half])
            return _merged(first, await self.insist([], receipts[half:]))
        if not updates:
            logger.error("Girder cannot be told that a job is here: %s", error)
            return {}
        if len(updates) > 1:
            half = len(updates) // 2
            first = await self.insist(updates[:half], [])
            return _merged(first, await self.insist(updates[half:], []))
        (update,) = updates
        log = update.get("log") or ""
        if _is_too_large(error) and len(log) > _SHORT:
            half = len(log) // 2
            head = {k: v for k, v in update.items() if k in _BARE - {"statuses"}}
            first = await self.insist([{**head, "log": log[:half]}], [])
            # Only now, since the head may have been divided as well.
            number = self._number(update["id"], update["attempt"])
            rest = {**update, "log": log[half:], "sequence": number}
            return _merged(first, await self.insist([rest], []))
        logger.error("Part of an update of job %s cannot be delivered: %s", update["id"], error)
        less = _less(update, error)
        return {} if less is None else await self.insist([less], [])


def _merged(first: Verdicts, second: Verdicts) -> Verdicts:
    kinds = {**first, **second}
    return {kind: [*first.get(kind, ()), *second.get(kind, ())] for kind in kinds}


def _less(update: dict[str, Any], error: Exception) -> dict[str, Any] | None:
    """Return an update with less in it, which says so, or None if there is no less."""
    kept = {k: v for k, v in update.items() if k not in _LARGE}
    if kept != update:
        if "result" in update:
            kept["error"] = f"it could not be sent to Girder: {error}"
        return kept
    if update.get("log", _LOST) != _LOST:
        return {**update, "log": _LOST}
    bare = {k: v for k, v in update.items() if k in _BARE}
    return bare if bare != update else None


def _is_too_large(error: Exception) -> bool:
    return isinstance(error, GirderError) and error.status == _TOO_LARGE


def _is_permanent(error: Exception) -> bool:
    """Say whether the same request will never be taken."""
    if isinstance(error, GirderError):
        return _is_too_large(error)
    return isinstance(error, (TypeError, ValueError, OverflowError))
