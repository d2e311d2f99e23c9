"""The merged events of an attempt that Girder has not recorded yet."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from girder_dask.jobs import FINAL
from girder_dask.protocol.messages import JobEvent, JobUpdate

__all__ = ["PendingUpdate"]

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
    waits: str | None = None
    nbytes: int = 0

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
        if event.waits is not None:
            self.waits = event.waits
            grown += len(event.waits)
        self.nbytes += grown
        return grown

    def split_log(self, max_nbytes: int) -> PendingUpdate:
        """Split off the beginning of the log, of at least one event, as an update of its own."""
        head = PendingUpdate(self.id, self.attempt)
        while self.log and (not head.log or head.nbytes + len(self.log[0]) <= max_nbytes):
            text = self.log.popleft()
            head.log.append(text)
            head.nbytes += len(text)
        self.nbytes -= head.nbytes
        return head

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
            waits=self.waits,
        )
