"""Change of one job, which collects updates and becomes one conditional write.

This is pure computation on a job document. Documents are read and written in
:mod:`girder_dask.plugin.store.updates`, :mod:`~girder_dask.plugin.store.claims` and
:mod:`~girder_dask.plugin.store.cancellation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from enum import Enum
from typing import Any

from pymongo import UpdateOne

from girder_dask.jobs import FINAL, JobStatus, can_follow
from girder_dask.plugin.store.logs.writer import LOG_FIELD, LogWriter
from girder_dask.plugin.store.results import OUTCOME_FIELD, AttemptOutcome
from girder_dask.plugin.store.retries import RetryChange
from girder_dask.protocol.messages import JobUpdate
from girder_dask.utils.text import clean_text, shortened

__all__ = ["JobChange", "Verdict"]

# Images of containers that are recorded with one job.
_MAX_IMAGES = 20
_UNSET = {"attempt": None, "sequence": None, "scheduler": None}


class Verdict(Enum):
    """Reply to the sender of an update.

    ``STALE``: another scheduler has the job. ``SUPERSEDED``: the scheduler has the job, in a later
    attempt than that of the update. ``CANCEL``: the job must be stopped.
    """

    APPLIED = "applied"
    STALE = "stale"
    SUPERSEDED = "superseded"
    CANCEL = "cancel"


class JobChange:
    """A job document and the changes to be written to it.

    Parameters
    ----------
    job
        The job document as it was read. It is changed as the database will be.
    allow
        Called with the information of the event ``jobs.job.update`` before a part of an update is
        applied. If it returns False, that part is skipped.
    """

    def __init__(
        self, job: dict[str, Any], allow: Callable[[dict[str, Any]], bool] | None = None
    ) -> None:
        self.job = job
        self._dask_as_read: dict[str, Any] = dict(job.get("dask") or {})
        # An INACTIVE job, which was not started with delay(), has none of these fields yet.
        self.dask: dict[str, Any] = {**_UNSET, **self._dask_as_read}
        self.job["dask"] = self.dask
        self.steps: list[tuple[int, int]] = []
        # Taken out of the document, since notifications contain that.
        self.log = LogWriter(job["_id"], self.dask, job.pop(LOG_FIELD, None))
        self.retry = RetryChange(job)
        self.progressed = False
        self.reason_changed = False
        self.ended = False
        self.outcome: AttemptOutcome | None = None
        self.abandoned = False
        self._spilled = False
        self._allow = allow
        self._filter = {
            "_id": job["_id"],
            "status": job["status"],
            "dask.attempt": self.dask["attempt"],
            "dask.sequence": self.dask["sequence"],
            "dask.scheduler": self.dask["scheduler"],
            "dask.waits": self.dask.get("waits"),
        }
        self._timestamps: list[dict[str, Any]] = []

    @property
    def id(self) -> Any:
        """The id of the job."""
        return self.job["_id"]

    @property
    def position(self) -> tuple[int, int]:
        """Attempt and sequence, which only increase."""
        return self.dask["attempt"], self.dask["sequence"]

    @property
    def new_attempts(self) -> int:
        """How many attempts the change adds."""
        return max(0, (self.dask["attempt"] or 0) - (self._dask_as_read.get("attempt") or 1))

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self.job["status"] in FINAL

    @property
    def changed(self) -> bool:
        """Whether there is anything to write."""
        is_reported = self._timestamps or self.log.changed or self.progressed
        return bool(is_reported or self.dask != self._dask_as_read)

    @property
    def outcome_beside(self) -> bool:
        """Whether the outcome is stored in ``dask_job`` and not in the job document."""
        return self.outcome is not None and (self._spilled or not self.outcome.is_small)

    @property
    def text(self) -> list[str]:
        """The text that is added to the log in the job document."""
        return self.log.text

    @property
    def log_sizes(self) -> tuple[int, int] | None:
        """The sizes of the log in the document before and after, None once it is full."""
        sizes = self._dask_as_read.get("log_bytes", 0), self.dask.get("log_bytes", 0)
        return sizes if sizes[0] < sizes[1] else None

    # -- updates ------------------------------------------------------------------------------

    def apply(self, update: JobUpdate, scheduler: str) -> Verdict:
        """Apply an update of a scheduler. One with the sequence 0 is an acknowledgement.

        Raises
        ------
        ValueError, TypeError, KeyError, OverflowError
            If the update is invalid. No part of it is applied then.
        """
        statuses = [(JobStatus(int(s)), _moment(t)) for s, t in update.statuses or ()]
        progress = _checked_progress(update.progress)
        attempt, sequence = update.attempt, update.sequence
        ends = any(status in FINAL for status, _ in statuses)
        if not self._is_current(attempt, scheduler):
            if self.dask["scheduler"] != scheduler:
                return Verdict.STALE
            if attempt < self.dask["attempt"]:
                # It may be a repeated update. It may also be an attempt that the scheduler has
                # counted while Girder gave the job to another one, and then back.
                return Verdict.SUPERSEDED
            # The job has ended. A newer attempt must stop if it was canceled.
            return self._verdict(ends)
        if (attempt, sequence) > self.position:
            if attempt > self.dask["attempt"]:
                self.dask["attempt"] = attempt
            self.dask.update(sequence=sequence, scheduler=scheduler)
            self.acknowledge()
            self._apply_parts(statuses, update, progress)
            if update.pending_reason is not None:
                self.set_pending_reason(update.pending_reason)
            if update.images:
                self._add_images(update.images)
        elif sequence == 0:
            self.dask["scheduler"] = scheduler
            self.acknowledge()
        if ends and self.is_final:
            # Also after a repeated update: the process may have died before it cleaned up.
            self.ended = True
        return self._verdict(ends)

    def _add_images(self, images: Mapping[str, str]) -> None:
        """Record images of containers. Their names may have dots, so they are no keys here."""
        known = {each["name"]: each for each in self.dask.get("images") or ()}
        for name, digest in images.items():
            if name in known or len(known) < _MAX_IMAGES:
                known[name] = {"name": name, "digest": digest}
        self.dask["images"] = list(known.values())

    def _is_current(self, attempt: int, scheduler: str) -> bool:
        if self.dask["scheduler"] not in (None, scheduler) or attempt < self.dask["attempt"]:
            return False
        return attempt == self.dask["attempt"] or not self.is_final

    def _verdict(self, ends: bool) -> Verdict:
        stopping = self.job["status"] in (JobStatus.CANCELING, JobStatus.CANCELED)
        return Verdict.CANCEL if stopping and not ends else Verdict.APPLIED

    def _apply_parts(
        self,
        statuses: list[tuple[JobStatus, datetime]],
        update: JobUpdate,
        progress: dict[str, Any] | None,
    ) -> None:
        legal = _legal(self.job["status"], statuses)
        # Handlers of jobs.job.update see log and progress with the last state.
        parts: list[tuple[JobStatus | None, datetime | None]] = [*legal] or [(None, None)]
        for n, (status, moment) in enumerate(parts):
            last = n == len(parts) - 1
            log = update.log if last else None
            reached = progress if last else None
            if not self._allowed(status, log, reached):
                continue
            if status is not None and moment is not None:
                if not can_follow(self.job["status"], status):
                    continue
                self.advance(status, moment)
                if status in FINAL:
                    error = None if update.error is None else clean_text(update.error)
                    self.outcome = AttemptOutcome(
                        self.dask["attempt"], update.result, error, update.exception
                    )
            self._add(log, reached, ends=status in FINAL)
        if update.retry is not None and not self.is_final:
            self.retry.request(update.retry, self.dask)

    def _allowed(
        self, status: JobStatus | None, log: str | None, progress: Mapping[str, Any] | None
    ) -> bool:
        if self._allow is None or (status is None and not log and progress is None):
            return True
        progress = progress or {}
        return self._allow(
            {
                "job": self.job,
                "params": {
                    "log": log,
                    "overwrite": False,
                    "status": None if status is None else int(status),
                    "progressTotal": progress.get("total"),
                    "progressCurrent": progress.get("current"),
                    "progressMessage": progress.get("message"),
                    "otherFields": None,
                },
            }
        )

    # -- single changes -----------------------------------------------------------------------

    def advance(self, status: JobStatus, moment: datetime) -> None:
        """Set the state at a time, or at the time of the previous state if that is later."""
        stamps = self.job["timestamps"]
        if stamps:
            moment = max(moment, stamps[-1]["time"])
        stamp = {"status": int(status), "time": moment}
        self.job["timestamps"] = [*stamps, stamp]
        self._timestamps.append(stamp)
        self.job["status"] = int(status)
        self.steps.append((int(status), len(self.job["timestamps"])))
        if status != JobStatus.QUEUED:
            self._clear_pending_reason()
        if status in FINAL:
            self.ended = True
            self.dask.pop("open", None)
            self.acknowledge()

    def spill(self) -> None:
        """Store log and outcome outside the job document, which can grow no further."""
        self._spilled = True
        self.log.spill()

    def abandon(self, error: str, moment: datetime) -> None:
        """End the job and write nothing else, since its document can grow no further.

        It ends in ERROR, or in CANCELED if that was its next state. A job that had ended before
        stays as it is.
        """
        canceled, attempt = self.job["status"] == JobStatus.CANCELED, self.dask["attempt"] or 0
        stamps = self.job["timestamps"]
        self.job["status"] = self._filter["status"]
        self.job["timestamps"] = stamps[: len(stamps) - len(self._timestamps)]
        self.steps, self._timestamps, self.progressed, self.reason_changed = [], [], False, False
        self.dask.clear()
        self.dask.update({**_UNSET, **self._dask_as_read})
        self.log.drop()
        self.outcome = None
        self.abandoned = self._spilled = True
        if not self.is_final:
            self.advance(JobStatus.CANCELED if canceled else JobStatus.ERROR, moment)
            self.outcome = AttemptOutcome(attempt, error=error)

    def acknowledge(self) -> None:
        """Record that the scheduler has the job that it claimed, or no longer needs it."""
        self.dask.pop("claim", None)
        self.dask.pop("claimed", None)
        if "unreached" in self.dask:
            self.set_pending_reason("")

    def set_pending_reason(self, reason: str, *, unreached: bool = False) -> None:
        """Record why the job is pending; empty if it only waits for its turn.

        ``unreached`` marks a reason that holds until a scheduler acknowledges the job.
        """
        reason = clean_text(shortened(reason))
        if self.job["status"] != JobStatus.QUEUED or reason == self.dask.get("waits", ""):
            return
        self._clear_pending_reason()
        self.reason_changed = True
        if reason:
            self.dask["waits"] = reason
            self.write(f"Waiting: {reason}.\n")
        if unreached:
            self.dask["unreached"] = True

    def _clear_pending_reason(self) -> None:
        self.dask.pop("waits", None)
        self.dask.pop("unreached", None)

    def write(self, text: str, *, ends: bool = False) -> None:
        """Add text to the log, as :meth:`.LogWriter.write` does."""
        self.log.write(text, ends=ends)

    def _add(self, log: str | None, progress: Mapping[str, Any] | None, *, ends: bool) -> None:
        if log:
            self.write(log, ends=ends)
        if progress:
            before = self.job.get("progress") or {"message": None, "total": None, "current": None}
            self.job["progress"] = {**before, **progress}
            self.progressed = True

    # -- to the database ----------------------------------------------------------------------

    def operation(self, now: datetime) -> UpdateOne:
        """Return the write, which has no effect if the job has changed since it was read."""
        self.job["updated"] = now
        change: dict[str, Any] = {"$set": {"updated": now}}
        new = () if self.abandoned else self.dask.keys()
        for key in self._dask_as_read.keys() | new:
            if key not in self.dask:
                change.setdefault("$unset", {})[f"dask.{key}"] = True
            elif key not in self._dask_as_read or self.dask[key] != self._dask_as_read[key]:
                change["$set"][f"dask.{key}"] = self.dask[key]
        if self._timestamps:
            change["$set"]["status"] = self.job["status"]
        if self._timestamps and not self.abandoned:
            change.setdefault("$push", {})["timestamps"] = {"$each": self._timestamps}
        self.log.add_to(change)
        if self.outcome is not None and not self.outcome_beside:
            change["$set"][OUTCOME_FIELD] = self.outcome.document()
        self.retry.add_to(change, ended=self.ended)
        if self.progressed:
            change["$set"]["progress"] = self.job["progress"]
        return UpdateOne(self._filter, change)


def _legal(
    current: int, statuses: list[tuple[JobStatus, datetime]]
) -> list[tuple[JobStatus, datetime]]:
    """Return the states that a job in state ``current`` may reach one after the other."""
    legal = []
    for status, moment in statuses:
        is_gap = status in FINAL and not can_follow(current, status)
        if is_gap and can_follow(current, JobStatus.RUNNING):
            # An end is never skipped, even if no RUNNING was reported before it.
            legal.append((JobStatus.RUNNING, moment))
            current = JobStatus.RUNNING
        if can_follow(current, status):
            legal.append((status, moment))
            current = status
    return legal


def _moment(seconds: float) -> datetime:
    """Return a time as the database stores it, in whole milliseconds."""
    return datetime.fromtimestamp(math.floor(seconds * 1000) / 1000, timezone.utc)


def _checked_progress(progress: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not progress:
        return None
    checked: dict[str, Any] = {
        name: number
        for name in ("total", "current")
        if progress.get(name) is not None and math.isfinite(number := float(progress[name]))
    }
    if progress.get("message") is not None:
        checked["message"] = clean_text(shortened(str(progress["message"])))
    return checked
