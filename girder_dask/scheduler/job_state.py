"""A job in the hand of a dispatcher, and how long it pauses between two tries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobEvent, JobSpec
from girder_dask.scheduler.cluster import Timer

__all__ = ["Backoff", "JobState"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between the tries of a job, in seconds: doubled each time, up to the most.

    >>> [Backoff(1.0, 5.0).pause(n) for n in (1, 2, 3, 4)]
    [1.0, 2.0, 4.0, 5.0]
    """

    first: float = 1.0
    most: float = 60.0

    def pause(self, tries: int) -> float:
        """Return the pause after ``tries`` tries that failed."""
        return float(min(self.first * 2.0 ** min(tries - 1, 64), self.most))


@dataclass(slots=True, eq=False)
class JobState:
    """A job in hand.

    Attributes
    ----------
    attempt
        The attempt as Girder counts, which is at least that of ``spec``.
    recorded_attempt
        The last attempt of which Girder has the number.
    tries
        Runs that raised.
    run
        The run that is heard.
    assigned
        Whether Dask has placed it in this attempt, so that a run of it may have begun.
    worker
        The worker where it is, or was last.
    ended_on
        The worker where Dask has seen it end.
    closed
        Runs that are heard no more.
    lost_on
        The workers that were lost while it was on them.
    parked
        Whether it waits for its inputs.
    pause
        What ends the pause before its next try.
    forgotten
        How often Dask has forgotten it.
    end_reported
        Whether its end was given to the recorder.
    acknowledged
        Whether Girder has its end.
    result_stored
        Whether Girder has its value.
    nbytes
        How large its value is, once that is in the memory of a worker.
    finished
        Whether Dask has told its end too.
    """

    spec: JobSpec
    attempt: int
    recorded_attempt: int
    tries: int = 0
    status: JobStatus = JobStatus.QUEUED
    run: str | None = None
    assigned: bool = False
    worker: str | None = None
    ended_on: str | None = None
    closed: set[str] = field(default_factory=set)
    lost_on: list[str] = field(default_factory=list)
    canceled: bool = False
    blocked: bool = False
    pause: Timer | None = None
    forgotten: int = 0
    end_reported: bool = False
    acknowledged: bool = False
    result_stored: bool = False
    nbytes: int | None = None
    finished: bool = False

    @property
    def is_queued(self) -> bool:
        """Whether no run of it has begun, and it is not to end."""
        return self.run is None and not self.end_reported and not self.canceled

    @property
    def is_on_its_way(self) -> bool:
        """Whether Dask was given it, and has not placed it anywhere in this attempt."""
        waits = self.blocked or self.pause is not None
        return self.is_queued and not (waits or self.assigned or self.ended_on)

    def try_admit(self, event: JobEvent, place: str | None) -> bool:
        """Say whether what a run says is heard; ``place`` is where Dask has placed the job."""
        if event.run is None or event.run == self.run:
            return event.run is not None
        if event.run in self.closed or self.run is not None:
            return False
        if event.worker not in (place, self.worker, self.ended_on):
            return False
        self.run = event.run
        self.worker = event.worker
        return True

    def close_run(self) -> None:
        """Listen to the present run no more, and begin the next attempt."""
        if self.run is not None:
            self.closed.add(self.run)
        self.run = self.worker = None
        self.assigned = False
        self.attempt += 1
        self.status = JobStatus.QUEUED

    def describe_losses(self, why: Callable[[str], str]) -> str:
        """Name the workers that were lost, each with why; empty if there are none."""
        if not self.lost_on:
            return ""
        lost = [(name, why(name)) for name in self.lost_on]
        named = ", ".join(f"{name} ({reason})" if reason else name for name, reason in lost)
        return f" Workers lost: {named}."

    def stop_waiting(self) -> None:
        """Wait neither for inputs nor for the next try."""
        self.blocked = False
        if self.pause is not None:
            self.pause.cancel()
            self.pause = None
