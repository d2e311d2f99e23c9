"""Updates to Girder and their delivery: failed requests are retried, refused ones divided."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from girder_dask.errors import GirderError
from girder_dask.http.scheduler_api import Acknowledgement
from girder_dask.jobs import FINAL
from girder_dask.protocol.messages import JobEvent, JobUpdate, RetryRequest
from girder_dask.utils.background import Guard

__all__ = ["PendingUpdate", "Post", "UpdateDelivery", "Verdicts"]

logger = logging.getLogger(__name__)

#: Girder's answer: ids of jobs by kind.
Verdicts = Mapping[str, Sequence[str]]

#: Posts updates and acknowledgements; returns Girder's answer.
Post = Callable[[list[dict[str, Any]], list[Acknowledgement]], Awaitable[Verdicts]]

_TOO_LARGE_STATUS = 413
# A log of at most this length is not divided, since every server accepts it.
_SHORT_LOG_CHARS = 4096
# The fields that are left out of an update first, and those that always remain.
_LARGE_FIELDS = {"progress", "result", "exception"}
_BARE_FIELDS = {"version", "id", "attempt", "sequence", "statuses", "retry"}
# Replaces the part of a log that could not be delivered.
_LOST_LOG = "\n[Part of the output could not be sent to Girder.]\n"
# The size that each event counts as, in addition to its texts.
_EVENT_NBYTES = 100


@dataclass(slots=True)
class PendingUpdate:
    """The merged events of one attempt."""

    id: str
    attempt: int
    statuses: list[list[float]] = field(default_factory=list)
    log: deque[str] = field(default_factory=deque)
    progress: dict[str, Any] = field(default_factory=dict)
    result: bytes | None = None
    error: str | None = None
    exception: bytes | None = None
    pending_reason: str | None = None
    images: dict[str, str] = field(default_factory=dict)
    retry: RetryRequest | None = None
    nbytes: int = 0
    since: float = field(default_factory=time.monotonic)

    def merge(self, event: JobEvent) -> int:
        """Merge an event; return about how many bytes that added."""
        grown = _EVENT_NBYTES
        if event.log:
            self.log.append(event.log)
            grown += len(event.log)
        if event.progress:
            self.progress.update(event.progress)
        if event.status is not None:
            self.statuses.append([event.status, event.time])
        if event.result is not None:
            self.result = event.result
            grown += len(event.result)
        if event.error is not None:
            self.error = event.error
        if event.exception is not None:
            self.exception = event.exception
            grown += len(event.exception)
        if event.pending_reason is not None:
            self.pending_reason = event.pending_reason
            grown += len(event.pending_reason)
        if event.images:
            self.images.update(event.images)
        if event.retry is not None:
            self.retry = event.retry
            grown += len(event.retry.note or b"")
        self.nbytes += grown
        return grown

    def split_log(self, max_nbytes: int) -> PendingUpdate:
        """Split off the beginning of the log, of at least one event, as an update of its own."""
        head = PendingUpdate(self.id, self.attempt, since=self.since)
        while self.log and (not head.log or head.nbytes + len(self.log[0]) <= max_nbytes):
            text = self.log.popleft()
            head.log.append(text)
            head.nbytes += len(text)
        self.nbytes -= head.nbytes
        return head

    @property
    def age_s(self) -> float:
        """Seconds since its first event."""
        return time.monotonic() - self.since

    @property
    def is_final(self) -> bool:
        """Whether the update ends the job."""
        return bool(self.statuses) and self.statuses[-1][0] in FINAL

    def to_update(self, sequence: int) -> JobUpdate:
        """Return the message to Girder."""
        return JobUpdate(
            id=self.id,
            attempt=self.attempt,
            sequence=sequence,
            statuses=self.statuses or None,
            log="".join(self.log) or None,
            progress=self.progress or None,
            result=self.result,
            error=self.error,
            exception=self.exception,
            pending_reason=self.pending_reason,
            images=self.images or None,
            retry=self.retry,
        )


class UpdateDelivery:
    """Delivery of one request after another, with sequence numbers for each attempt's updates.

    Parameters
    ----------
    post
        Coroutine function that posts updates and acknowledgements. If it raises GirderError, they
        were not delivered and are posted again.
    retry_delay_s, max_retry_delay_s
        Seconds before a failed request is retried, doubled each time up to the limit.
    """

    def __init__(self, post: Post, *, retry_delay_s: float, max_retry_delay_s: float) -> None:
        self._post = post
        self._guard = Guard(
            logger,
            "Sending job updates to Girder",
            expected=(GirderError,),
            first_delay_s=retry_delay_s,
            max_delay_s=max_retry_delay_s,
        )
        self._sequences: dict[tuple[str, int], int] = {}
        #: How many requests were made.
        self.requests = 0

    @property
    def error(self) -> str | None:
        """Why the last request failed, None if it succeeded."""
        return self._guard.error

    def next_sequence(self, job_id: str, attempt: int) -> int:
        """Return the number of the next update of an attempt."""
        key = (job_id, attempt)
        self._sequences[key] = sequence = self._sequences.get(key, 0) + 1
        return sequence

    def forget(self, job_id: str, attempt: int) -> None:
        """Forget the numbers of an attempt that has no further updates."""
        self._sequences.pop((job_id, attempt), None)

    async def deliver(
        self, updates: list[dict[str, Any]], acknowledgements: list[Acknowledgement]
    ) -> Verdicts:
        """Deliver updates (:meth:`girder_dask.protocol.messages.JobUpdate.to_wire`).

        Failed requests are retried until all are delivered; Girder recognizes repeated updates by
        their numbers. A request that Girder can never accept is divided, so that one job does not
        block the others and a long log is not lost. An update names what was left out of it.
        """
        while True:
            with self._guard:
                self.requests += 1
                try:
                    return await self._post(updates, acknowledgements)
                except Exception as e:
                    if not _is_permanent(e):
                        raise
                    error = e
                return await self._divide(updates, acknowledgements, error)
            await asyncio.sleep(self._guard.delay_s)

    async def _divide(
        self,
        updates: list[dict[str, Any]],
        acknowledgements: list[Acknowledgement],
        error: Exception,
    ) -> Verdicts:
        if updates and acknowledgements:
            first = await self.deliver(updates, [])
            return _merged(first, await self.deliver([], acknowledgements))
        if len(acknowledgements) > 1:
            half = len(acknowledgements) // 2
            first = await self.deliver([], acknowledgements[:half])
            return _merged(first, await self.deliver([], acknowledgements[half:]))
        if not updates:
            logger.error("The acknowledgement of a job cannot be delivered: %s", error)
            return {}
        if len(updates) > 1:
            half = len(updates) // 2
            first = await self.deliver(updates[:half], [])
            return _merged(first, await self.deliver(updates[half:], []))
        return await self._divide_update(updates[0], error)

    async def _divide_update(self, update: dict[str, Any], error: Exception) -> Verdicts:
        log = update.get("log") or ""
        if _is_too_large(error) and len(log) > _SHORT_LOG_CHARS:
            half = len(log) // 2
            head = {k: v for k, v in update.items() if k in _BARE_FIELDS - {"statuses", "retry"}}
            first = await self.deliver([{**head, "log": log[:half]}], [])
            # Numbered only now, since the head may have been divided and used further numbers.
            sequence = self.next_sequence(update["id"], update["attempt"])
            rest = {**update, "log": log[half:], "sequence": sequence}
            return _merged(first, await self.deliver([rest], []))
        logger.error("Part of an update of job %s cannot be delivered: %s", update["id"], error)
        reduced = _reduced(update, error)
        return {} if reduced is None else await self.deliver([reduced], [])


def _merged(first: Verdicts, second: Verdicts) -> Verdicts:
    kinds = {**first, **second}
    return {kind: [*first.get(kind, ()), *second.get(kind, ())] for kind in kinds}


def _reduced(update: dict[str, Any], error: Exception) -> dict[str, Any] | None:
    """Return an update without its large parts, and with a note; None if nothing can be dropped."""
    kept = {k: v for k, v in update.items() if k not in _LARGE_FIELDS}
    if kept != update:
        if "result" in update:
            kept["error"] = f"it could not be sent to Girder: {error}"
        return kept
    if update.get("log", _LOST_LOG) != _LOST_LOG:
        return {**update, "log": _LOST_LOG}
    bare = {k: v for k, v in update.items() if k in _BARE_FIELDS}
    return bare if bare != update else None


def _is_too_large(error: Exception) -> bool:
    return isinstance(error, GirderError) and error.status == _TOO_LARGE_STATUS


def _is_permanent(error: Exception) -> bool:
    """Return True if the same request can never succeed."""
    if isinstance(error, GirderError):
        return _is_too_large(error)
    return isinstance(error, (TypeError, ValueError, OverflowError))
