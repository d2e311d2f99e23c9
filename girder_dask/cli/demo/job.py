"""The job of the demo, as Girder shows it while it runs."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from girder_dask.errors import JobError
from girder_dask.jobs import FINAL, JobStatus

__all__ = ["JobState", "JobView", "follow"]

_POLL_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class JobState:
    """A state of a job. ``seconds`` counts from the creation of the job."""

    status: JobStatus
    time: str
    seconds: float


@dataclass(frozen=True, slots=True)
class JobView:
    """A job at one moment. ``current`` and ``total`` are its progress."""

    id: str
    title: str
    status: JobStatus
    states: tuple[JobState, ...]
    log: str
    current: float = 0.0
    total: float = 0.0
    message: str = ""

    @classmethod
    def from_document(cls, job: Mapping[str, Any]) -> JobView:
        """Read a job document as Girder's REST API returns it."""
        created = _seconds(job["created"])
        states = tuple(
            JobState(JobStatus(s["status"]), s["time"], round(_seconds(s["time"]) - created, 3))
            for s in job.get("timestamps") or ()
        )
        log = job.get("log") or ""
        progress = job.get("progress") or {}
        return cls(
            id=str(job["_id"]),
            title=job["title"],
            status=JobStatus(job["status"]),
            states=states,
            log=log if isinstance(log, str) else "".join(log),
            current=float(progress.get("current") or 0),
            total=float(progress.get("total") or 0),
            message=progress.get("message") or "",
        )

    @property
    def ended(self) -> bool:
        """Whether the job is in a final state."""
        return self.status in FINAL

    def describe(self) -> dict[str, Any]:
        """Return the job for the demo's JSON document."""
        return {
            "id": self.id,
            "title": self.title,
            "status": self.status.name,
            "states": [
                {"status": s.status.name, "time": s.time, "seconds": s.seconds} for s in self.states
            ],
            "progress": {"current": self.current, "total": self.total, "message": self.message},
            "log": self.log,
        }


def _seconds(time: str) -> float:
    return datetime.datetime.fromisoformat(time).timestamp()


def follow(
    client: Any, job_id: str, *, timeout: float, check: Callable[[], None] = lambda: None
) -> Iterator[JobView]:
    """Load a job ten times a second, and yield it until it has ended.

    Parameters
    ----------
    client
        A ``girder_client.GirderClient`` that may read the job.
    job_id
        The id of the job.
    timeout
        Seconds in which the job must end.
    check
        Called before each request. Its exceptions pass through.

    Raises
    ------
    JobError
        If the job has not ended in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        check()
        view = JobView.from_document(client.get(f"job/{job_id}"))
        yield view
        if view.ended:
            return
        if time.monotonic() > deadline:
            raise JobError(
                f"Job {job_id} is still {view.status.name} after {timeout:.0f} s. A job that "
                "stays QUEUED has no worker that can run it.",
                job_id=job_id,
            )
        time.sleep(_POLL_INTERVAL_S)
