"""Status counts of the jobs of a map, and the change of their parent that follows.

This is pure computation on the document of the parent.
:mod:`girder_dask.plugin.store.maps.parents` reads and writes documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from girder_dask.jobs import FINAL, JobStatus

__all__ = [
    "SEND_TIMEOUT",
    "ParentChange",
    "ParentState",
    "StatusCounts",
    "is_recording_over",
    "progress",
]

#: How long the jobs of a map may take to be recorded. After that, the process that recorded them
#: counts as dead.
RECORD_TIMEOUT = timedelta(minutes=2)

#: How long the sender of a map may take for the next piece. After that, the map is incomplete.
SEND_TIMEOUT = timedelta(minutes=10)

_PENDING_STATUSES = (JobStatus.INACTIVE, JobStatus.QUEUED)


def is_recording_over(job: Mapping[str, Any], now: datetime) -> bool:
    """Return True if no more jobs of a parent are recorded, though it is not marked complete.

    The process that recorded them, or the sender of the map, counts as dead, or the map was
    canceled.
    """
    group = job["dask"]["group"]
    began: datetime | None = group.get("recording")
    if began is None:
        return False
    if group.get("sending"):
        return job["status"] == JobStatus.CANCELING or now - began >= SEND_TIMEOUT
    return now - began >= RECORD_TIMEOUT


@dataclass(slots=True)
class StatusCounts:
    """The number of jobs of a map in each state; ``started`` have left the queue."""

    total: int = 0
    started: int = 0
    done: int = 0
    failed: int = 0
    canceled: int = 0

    @property
    def ended(self) -> int:
        """The number of jobs that have ended."""
        return self.done + self.failed + self.canceled

    def add(self, status: Any, number: int) -> None:
        """Add a number of jobs in a state."""
        self.total += number
        if status not in _PENDING_STATUSES:
            self.started += number
        if status == JobStatus.SUCCESS:
            self.done += number
        elif status == JobStatus.ERROR:
            self.failed += number
        elif status == JobStatus.CANCELED:
            self.canceled += number


@dataclass(slots=True)
class ParentChange:
    """A change of a parent job to be written, which is a :class:`.notifications.Change`."""

    job: dict[str, Any]
    read: dict[str, Any]
    write: dict[str, Any]
    steps: list[tuple[int, int]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    progressed: bool = False
    reason_changed: bool = False
    changed: bool = True
    log_sizes: tuple[int, int] | None = None


class ParentState:
    """The state of one parent as it was read, from which its next change is computed."""

    def __init__(self, job: dict[str, Any], now: datetime) -> None:
        self._job = job
        self._now = now
        self._group = dict(job["dask"]["group"])
        self._read = {
            "_id": job["_id"],
            "status": job["status"],
            "dask.group.revision": self._group["revision"],
        }
        self._stamps: list[dict[str, Any]] = []
        self._steps: list[tuple[int, int]] = []
        self._text: list[str] = []

    def stop(self) -> ParentChange:
        """Return the change to CANCELING."""
        self._advance(JobStatus.CANCELING)
        return self._change()

    def counted(self, count: StatusCounts, failures: Callable[[], str]) -> ParentChange | None:
        """Return the change to new counts, None if nothing changes.

        ``failures`` is called for a description of the failed jobs, if all have ended.
        """
        if not self._apply_counts(count):
            return None
        if self._job["status"] in FINAL:
            # Another process has ended the parent.
            self._group["open"] = False
            return self._change()
        if count.started > count.canceled and self._job["status"] in _PENDING_STATUSES:
            self._advance(JobStatus.RUNNING)
        if count.ended == count.total and "recording" not in self._group:
            self._end(count, failures)
        if self._group == self._job["dask"]["group"] and not self._stamps:
            return None
        return self._change()

    def _apply_counts(self, count: StatusCounts) -> bool:
        """Apply new counts. Return False while the jobs are still being recorded."""
        was_recording = "recording" in self._group
        if was_recording and not is_recording_over(self._job, self._now):
            if not self._group.get("sending"):
                return False
            self._set_counts(count, max(self._group["total"], count.total))
            return True
        if was_recording:
            self._close_recording(count)
        if count.total == 0 and self._group["total"] > 0 and not was_recording:
            # All jobs of the map were deleted.
            self._group["canceled"] = self._group["total"]
            return True
        self._set_counts(count, count.total)
        return True

    def _set_counts(self, count: StatusCounts, total: int) -> None:
        self._group.update(
            total=total, done=count.done, failed=count.failed, canceled=count.canceled
        )

    def _close_recording(self, count: StatusCounts) -> None:
        """Record that there will be no more jobs, and how many are missing."""
        del self._group["recording"]
        was_sending = self._group.pop("sending", False)
        if self._job["status"] == JobStatus.CANCELING:
            return
        total = self._group["total"]
        missing = total - count.total
        if missing > 0:
            self._group["lost"] = missing
        if was_sending:
            self._group["incomplete"] = True
            of_all = f" of {total}" if missing > 0 else ""
            self._text.append(
                f"This map is incomplete: the process that sent it stopped after {count.total}"
                f"{of_all} jobs. Start the others again.\n"
            )
        elif missing > 0:
            self._text.append(
                f"{missing} of {total} jobs were never recorded, since Girder was stopped "
                "meanwhile. Start them again.\n"
            )

    def _end(self, count: StatusCounts, failures: Callable[[], str]) -> None:
        end = self._last_state(count)
        if end == JobStatus.SUCCESS and self._job["status"] in _PENDING_STATUSES:
            self._advance(JobStatus.RUNNING)
        self._advance(end)
        self._group["open"] = False
        if count.failed:
            self._text.insert(0, failures())

    def _last_state(self, count: StatusCounts) -> JobStatus:
        stopping = self._job["status"] == JobStatus.CANCELING
        if count.failed and not (stopping and count.canceled):
            return JobStatus.ERROR
        if count.canceled or self._group["canceled"]:
            return JobStatus.CANCELED
        is_whole = not (self._group.get("lost") or self._group.get("incomplete"))
        return JobStatus.SUCCESS if is_whole else JobStatus.ERROR

    def _advance(self, status: JobStatus) -> None:
        stamps = [*self._job["timestamps"], *self._stamps]
        moment = max(self._now, stamps[-1]["time"]) if stamps else self._now
        self._stamps.append({"status": int(status), "time": moment})
        self._steps.append((int(status), len(stamps) + 1))
        self._job["status"] = int(status)

    def _change(self) -> ParentChange:
        job, group = self._job, {**self._group, "revision": self._group["revision"] + 1}
        reached = progress(group)
        progressed = reached != job["progress"]
        job["timestamps"] = [*job["timestamps"], *self._stamps]
        job["dask"] = {**job["dask"], "group": group}
        job.update(progress=reached, updated=self._now)
        change: dict[str, Any] = {
            "$set": {
                "updated": self._now,
                "status": job["status"],
                "progress": reached,
                "dask.group": group,
            }
        }
        if self._stamps:
            change.setdefault("$push", {})["timestamps"] = {"$each": self._stamps}
        if self._text:
            change.setdefault("$push", {})["log"] = {"$each": self._text}
        return ParentChange(job, self._read, change, self._steps, self._text, progressed)


def progress(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the progress of a parent job from its subdocument ``dask.group``.

    >>> progress({"total": 5, "done": 2, "failed": 1, "canceled": 0})["message"]
    '3 of 5 jobs have ended, 1 failed'
    """
    total = group["total"]
    ended = group["done"] + group["failed"] + group["canceled"]
    message = f"{ended} of {total} jobs have ended"
    for name in ("failed", "canceled"):
        if group[name]:
            message += f", {group[name]} {name}"
    if group.get("incomplete"):
        message += ", others were never sent"
    return {"total": float(total), "current": float(ended), "message": message}
