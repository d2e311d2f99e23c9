"""The jobs that a scheduler has in hand.

A job is in hand from when the scheduler accepts it until Girder has acknowledged its end.
The dispatcher takes in what happens to it from three sides: Dask's transitions say where
it is placed, the runs on the workers say what they do, and Girder says what became of the
updates. It passes one consistent history on to the recorder. It knows Dask only as a
:class:`Cluster`, so that tests drive it without one.

A *run* is one execution on one worker. Only the run that the dispatcher has admitted is
heard: an admitted run is on the worker that Dask has placed the job on, and when Dask takes
the job from that worker, the run is closed for good and the job has a new attempt. Whatever
a worker says later that was thought dead is dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from girder_dask.jobs import FINAL, JobEvent, JobSpec, JobStatus

__all__ = ["Cluster", "Dispatcher"]

logger = logging.getLogger(__name__)


class Cluster(Protocol):
    """What a dispatcher asks of Dask. No method waits."""

    def submit(self, specs: Sequence[JobSpec]) -> None:
        """Have the jobs run, under their keys."""

    def drop(self, keys: Sequence[str]) -> None:
        """Forget keys, whether they run or not."""

    def stop(self, worker: str, jobs: Sequence[str]) -> None:
        """Tell the runs of jobs on a worker to stop."""

    def placed_on(self, key: str) -> str | None:
        """Return the address of the worker that a key is placed on."""


@dataclass(slots=True)
class _Hand:
    """A job in hand."""

    spec: JobSpec
    attempt: int
    tries: int = 0  # runs that raised
    status: JobStatus = JobStatus.QUEUED
    run: str | None = None  # the run that is heard
    worker: str | None = None  # where it is, or was last
    ended_on: str | None = None  # where Dask has seen it end
    closed: set[str] = field(default_factory=set)  # runs that are heard no more
    lost_on: list[str] = field(default_factory=list)
    canceled: bool = False
    retrying: bool = False  # Dask tries again, before the run has told its error
    told: bool = False  # its end was given to the recorder


class Dispatcher:
    """Accepts jobs, follows them and says what happens to them.

    Parameters
    ----------
    cluster
        Dask.
    record
        Takes the job events that make up each job's history.
    forget
        Called with job id and attempt when no more will be recorded of it.
    """

    def __init__(
        self,
        cluster: Cluster,
        record: Callable[[JobEvent], None],
        forget: Callable[[str, int], None],
    ) -> None:
        self._cluster = cluster
        self._record = record
        self._forget = forget
        self._by_id: dict[str, _Hand] = {}
        self._by_key: dict[str, _Hand] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    # -- from those who submit --------------------------------------------------------------

    def accept(self, specs: Iterable[JobSpec]) -> list[str]:
        """Take jobs in hand; those that are already in hand stay as they are.

        Returns
        -------
        list of str
            The ids of the jobs that are in hand now.
        """
        new = []
        ids = []
        for spec in specs:
            ids.append(spec.id)
            known = self._by_id.get(spec.id)
            if known is not None:
                if known.spec.attempt >= spec.attempt:
                    continue
                self._let_go(known, drop=True)
            self._by_id[spec.id] = self._by_key[spec.key] = _Hand(spec, spec.attempt)
            new.append(spec)
        if new:
            self._cluster.submit(new)
            now = time.time()
            for spec in new:  # tells Girder who has the job
                self._record(JobEvent(id=spec.id, attempt=spec.attempt, time=now))
        return ids

    def cancel(self, ids: Iterable[str]) -> None:
        """End jobs: those that run are told to stop, the others are dropped."""
        for job_id in ids:
            hand = self._by_id.get(job_id)
            if hand is None or hand.told:
                continue
            hand.canceled = True
            worker = self._cluster.placed_on(hand.spec.key)
            if worker is not None:
                self._cluster.stop(worker, [job_id])
            if hand.run is None:
                self._end(hand, JobStatus.CANCELED)
                self._cluster.drop([hand.spec.key])

    # -- from the workers ---------------------------------------------------------------------

    def hear(self, event: JobEvent) -> bool:
        """Take in what a run says. Say whether that run is the one that is heard."""
        hand = self._by_id.get(event.id)
        if hand is None or hand.told or event.attempt != hand.spec.attempt:
            return False
        if not self._admitted(hand, event):
            return False
        status = None if event.status is None else JobStatus(event.status)
        if status == JobStatus.ERROR and hand.tries < hand.spec.retries and not hand.canceled:
            self._again_after_error(hand, event)
            return True
        if status is not None:
            hand.status = status
        hand.told = status in FINAL
        self._record(replace(event, attempt=hand.attempt))
        if hand.told and hand.spec.retries and status != JobStatus.SUCCESS:
            self._cluster.drop([hand.spec.key])  # Dask may have tries left
        return True

    def _admitted(self, hand: _Hand, event: JobEvent) -> bool:
        if event.run is None or event.run == hand.run:
            return event.run is not None
        if hand.retrying:
            self._again_after_error(hand, None)
        if event.run in hand.closed or hand.run is not None:
            return False
        places = (self._cluster.placed_on(hand.spec.key), hand.worker, hand.ended_on)
        if event.worker not in places:
            return False
        hand.run = event.run
        hand.worker = event.worker
        return True

    def _again_after_error(self, hand: _Hand, event: JobEvent | None) -> None:
        """Begin a new attempt: Dask runs the key again, as it was submitted with retries."""
        hand.tries += 1
        hand.retrying = False
        total = hand.spec.retries + 1
        if event is not None:
            self._record(replace(event, attempt=hand.attempt, status=None, error=None, result=None))
        self._next_attempt(hand, f"Try {hand.tries} of {total} failed; the job is tried again")

    def _next_attempt(self, hand: _Hand, why: str) -> None:
        if hand.run is not None:
            hand.closed.add(hand.run)
        hand.run = None
        hand.worker = None
        hand.attempt += 1
        hand.status = JobStatus.QUEUED
        self._say(hand, status=JobStatus.QUEUED, log=f"{why} as attempt {hand.attempt}.\n")

    # -- from Dask ----------------------------------------------------------------------------

    def placed(self, key: str, worker: str) -> None:
        """Take note that Dask has placed a key on a worker."""
        hand = self._by_key[key]
        hand.ended_on = None
        if hand.run is None:
            hand.worker = worker

    def ended(self, key: str, worker: str | None) -> None:
        """Take note that a key has ended on a worker, which may be another than it began on."""
        hand = self._by_key.get(key)
        if hand is not None:
            hand.ended_on = worker

    def taken_away(self, key: str, worker: str | None, *, alive: bool) -> None:
        """Take note that a key is on its worker no longer, but wanted: it will run again.

        A worker that is ``alive`` still has told Dask that the task raised.
        """
        hand = self._by_key.get(key)
        if hand is None or hand.told:
            return
        hand.ended_on = None
        if hand.run is None:
            hand.worker = None
            return
        if hand.retrying:  # what is lost now had not begun
            return
        if alive and hand.canceled:
            self._cluster.drop([key])
            return
        if alive and hand.tries < hand.spec.retries:
            hand.retrying = True
            return
        lost = worker or hand.worker or "its worker"
        hand.lost_on.append(lost)
        if hand.canceled:
            self._end(hand, JobStatus.CANCELED)
            self._cluster.drop([key])
        else:
            self._next_attempt(hand, f"Worker {lost} was lost while the job ran; it is tried again")

    def failed(self, key: str, reason: str) -> None:
        """Take note that Dask has given up on a key, which no run has told the end of."""
        hand = self._by_key.get(key)
        if hand is None or hand.told:
            return
        if hand.canceled:
            self._end(hand, JobStatus.CANCELED)
            return
        if hand.lost_on:
            reason = f"{reason} Workers lost: {', '.join(hand.lost_on)}."
        self._end(hand, JobStatus.ERROR, log=reason + "\n", error=reason)

    def is_open(self, key: str) -> bool:
        """Say whether the end of the job under this key is not known yet."""
        hand = self._by_key.get(key)
        return hand is not None and not hand.told

    def forgotten(self, key: str) -> None:
        """Take note that Dask has forgotten a key whose end is not known: submit it again."""
        hand = self._by_key.get(key)
        if hand is None or hand.told:
            return
        if hand.canceled:
            self._end(hand, JobStatus.CANCELED)
            return
        del self._by_key[key]
        self._next_attempt(hand, "Dask forgot the task before it told its end; it runs again")
        hand.spec = replace(hand.spec, attempt=hand.attempt)
        self._by_key[hand.spec.key] = hand
        self._cluster.submit([hand.spec])

    # -- from Girder --------------------------------------------------------------------------

    def verdict(self, job_id: str, kind: str) -> None:
        """Take note of what Girder says of a job: ``done``, ``stale``, ``gone`` or ``cancel``."""
        hand = self._by_id.get(job_id)
        if hand is None:
            return
        if kind == "cancel":
            self.cancel([job_id])
        elif kind in ("stale", "gone"):
            logger.info("Girder says that job %s is %s; it is stopped", job_id, kind)
            worker = self._cluster.placed_on(hand.spec.key)
            if worker is not None:
                self._cluster.stop(worker, [job_id])
            self._let_go(hand, drop=True)
        elif hand.told:
            self._let_go(hand, drop=False)

    # -- within -------------------------------------------------------------------------------

    def _end(
        self, hand: _Hand, status: JobStatus, *, log: str | None = None, error: str | None = None
    ) -> None:
        hand.status = status
        hand.told = True
        self._say(hand, status=status, log=log, error=error)

    def _say(
        self,
        hand: _Hand,
        *,
        status: JobStatus,
        log: str | None = None,
        error: str | None = None,
    ) -> None:
        self._record(
            JobEvent(
                id=hand.spec.id,
                attempt=hand.attempt,
                time=time.time(),
                status=int(status),
                log=log,
                error=error,
            )
        )

    def _let_go(self, hand: _Hand, *, drop: bool) -> None:
        self._by_id.pop(hand.spec.id, None)
        self._by_key.pop(hand.spec.key, None)
        self._forget(hand.spec.id, hand.attempt)
        if drop:
            self._cluster.drop([hand.spec.key])
