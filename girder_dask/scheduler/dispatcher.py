"""The jobs that a scheduler has in hand.

A job is in hand from when the scheduler accepts it until Girder has acknowledged its end.
The dispatcher takes in what happens to it from three sides: Dask's transitions say where
it is placed, the runs on the workers say what they do, and Girder says what became of the
updates. It passes one consistent history on to the recorder. It knows Dask only as a
:class:`~girder_dask.scheduler.cluster.Cluster`, so that tests drive it without one.

A *run* is one execution on one worker. Only the run that the dispatcher has admitted is
heard: an admitted run is on the worker that Dask has placed the job on, and when Dask takes
the job from that worker, the run is closed for good and the job has a new attempt. Whatever
a worker says later that was thought dead is dropped.

A job that needs the values of others is parked until each of them has ended well, and holds
no thread meanwhile. Values that are still on the cluster are given to it as keys.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import replace

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.protocol.messages import JobEvent, JobSpec
from girder_dask.scheduler.attempts import Attempts
from girder_dask.scheduler.cluster import Cluster
from girder_dask.scheduler.dependencies import DependencyGate, DependencyGraph, DependencyOutcome
from girder_dask.scheduler.job_state import Backoff, JobState
from girder_dask.scheduler.pending_reasons import PendingReasons
from girder_dask.scheduler.retention import RetainedResults
from girder_dask.utils.bounded_dict import BoundedDict

__all__ = ["Dispatcher"]

logger = logging.getLogger(__name__)

# How often Dask may forget a job before it is given up.
_MOST_FORGOTTEN = 5
# How many jobs are known to be canceled, or to have ended, that are not in hand.
_MOST_KNOWN = 10_000
# For how long a job that has ended may be on its way to here once more: as long as a request lasts.
_LATE = 60.0


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
    ask
        Called when Girder is to be asked for the jobs that :attr:`gate` does not know.
    backoff
        The pauses between the tries of a job that raises.
    keep_seconds, keep_bytes
        How long and how many bytes of values that Girder does not have are kept.
    clock
        Seconds that only grow.
    """

    def __init__(
        self,
        cluster: Cluster,
        record: Callable[[JobEvent], None],
        forget: Callable[[str, int], None],
        ask: Callable[[], None] = lambda: None,
        *,
        backoff: Backoff | None = None,
        keep_seconds: float = 600.0,
        keep_bytes: int = 2 << 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._record = record
        self._forget = forget
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._by_id: dict[str, JobState] = {}
        self._canceled_before = BoundedDict[str, None](_MOST_KNOWN)
        self._ended_before = BoundedDict[str, tuple[int, float]](_MOST_KNOWN)
        #: The jobs in hand, by the keys under which Dask has them.
        self.jobs = self._by_key = dict[str, JobState]()
        #: Their attempts.
        self.attempts = Attempts(self._by_id, self._by_key, cluster, self._say)
        self._graph = DependencyGraph()
        #: The values that stay on the cluster.
        self.retained = RetainedResults(
            cluster, self._graph.is_needed, seconds=keep_seconds, nbytes=keep_bytes, clock=clock
        )
        #: What jobs that need values of others pass.
        self.dependencies = DependencyGate(
            self._by_id, self._graph, self.retained, cluster.submit, self._fail, ask
        )
        #: Why jobs wait.
        self.pending = PendingReasons(
            self._by_key, self.dependencies, cluster, record, self._fail, clock
        )

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key or key in self.retained

    # -- from those who submit --------------------------------------------------------------

    def accept(self, specs: Iterable[JobSpec]) -> list[str]:
        """Take jobs in hand; those that are already in hand stay as they are.

        So do those that have just ended: Girder may have sent them before it heard of that.

        Returns
        -------
        list of str
            The ids of the jobs that are in hand now.
        """
        new = []
        ids = []
        for spec in specs:
            ids.append(spec.id)
            if self._has_just_ended(spec):
                continue
            known = self._by_id.get(spec.id)
            if known is not None:
                if known.spec.attempt >= spec.attempt:
                    continue
                self._remove(known, drop=True)
            job = JobState(spec, spec.attempt, spec.attempt)
            job.canceled = spec.id in self._canceled_before
            self._by_id[spec.id] = self._by_key[spec.key] = job
            if spec.dependencies:
                self._graph.add(spec.id, spec.dependencies)
            new.append(job)
        now = time.time()
        for job in new:  # tells Girder who has the job
            self._record(JobEvent(id=job.spec.id, attempt=job.spec.attempt, time=now))
            if job.canceled:
                self._end(job, JobStatus.CANCELED)
        self.dependencies.start([job for job in new if not job.canceled])
        return ids

    def _has_just_ended(self, spec: JobSpec) -> bool:
        attempt, when = self._ended_before.get(spec.id, (0, 0.0))
        return spec.attempt <= attempt and self._clock() - when < _LATE

    def cancel(self, ids: Iterable[str]) -> None:
        """End jobs: those that run are told to stop, the others are dropped.

        With a job that is placed on a worker, that may have begun and nobody have heard of it. So
        it is asked.
        """
        placed: dict[str, list[str]] = {}
        for job_id in ids:
            job = self._by_id.get(job_id)
            if job is None:  # it may be on its way to here
                self._canceled_before[job_id] = None
            if job is None or job.end_reported:
                continue
            job.canceled = True
            worker = self._cluster.assigned_to(job.spec.key)
            if worker is not None:
                placed.setdefault(worker, []).append(job.spec.key)
            elif job.run is None and job.ended_on is None:
                self._end(job, JobStatus.CANCELED)
        for worker, keys in placed.items():
            self._cluster.stop(worker, keys, self._not_begun)

    def _not_begun(self, key: str, worker: str) -> None:
        job = self._by_key.get(key)
        if job is None or job.end_reported or job.run is not None or not job.canceled:
            return
        if self._cluster.assigned_to(key) in (None, worker):
            self._end(job, JobStatus.CANCELED)
        else:  # Dask has moved it meanwhile
            self.cancel([job.spec.id])

    def possibly_started(self, ids: Iterable[str]) -> list[str]:
        """Return those of canceled jobs of which it is not known whether they have begun."""
        jobs = self._jobs_of(ids)
        return [job.spec.id for job in jobs if job.run is None and not job.end_reported]

    def started(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the attempts of those jobs in hand that have begun, or may have, by their ids."""
        jobs = self._jobs_of(ids)
        return {
            job.spec.id: job.attempt for job in jobs if job.run is not None or not job.end_reported
        }

    def _jobs_of(self, ids: Iterable[str]) -> list[JobState]:
        return [job for job_id in ids if (job := self._by_id.get(job_id))]

    def has(self, job_id: str) -> bool:
        """Say whether a job is in hand."""
        return job_id in self._by_id

    def key_of(self, job_id: str) -> str | None:
        """Return the key under which Dask has, or will have, the value of a job."""
        job = self._by_id.get(job_id)
        if job is not None and not job.end_reported:
            return job.spec.key
        if job is not None and job.status == JobStatus.SUCCESS and not job.finished:
            return job.spec.key
        return self.retained.key(job_id)

    # -- from the workers ---------------------------------------------------------------------

    def on_run_event(self, event: JobEvent) -> bool:
        """Take in what a run says. Say whether that run is the one that is heard."""
        job = self._by_id.get(event.id)
        if job is None or job.end_reported or event.attempt != job.spec.attempt:
            return False
        if not job.try_admit(event, self._cluster.assigned_to(job.spec.key)):
            return False
        status = None if event.status is None else JobStatus(event.status)
        if status == JobStatus.ERROR and not event.permanent and self._may_try_again(job):
            bare = replace(event, status=None, error=None, result=None, exception=None)
            self._record(replace(bare, attempt=job.attempt))
            self._try_again(job)
            return True
        if status is not None:
            job.status = status
        if event.attempt != job.attempt or (event.exception and status != JobStatus.ERROR):
            exception = event.exception if status == JobStatus.ERROR else None
            event = replace(event, attempt=job.attempt, exception=exception)
        self._record(event)
        if status in FINAL:
            job.result_stored = event.result is not None
            self._after_end(job)
        return True

    def _may_try_again(self, job: JobState) -> bool:
        return job.tries < job.spec.retries and not job.canceled

    def _try_again(self, job: JobState) -> None:
        job.tries += 1
        pause = self._backoff.pause(job.tries)
        what = f"Try {job.tries} of {job.spec.retries + 1} failed; the job is tried again"
        self.attempts.next(job, f"{what} in {pause:g} s" if pause else what)
        self.attempts.take_fresh_key(job)

        def resume() -> None:
            job.pause = None
            self.dependencies.start([job])

        job.pause = self._cluster.call_later(pause, resume)

    # -- from Dask ----------------------------------------------------------------------------

    def on_assigned(self, key: str, worker: str) -> None:
        """Take note that a key is on a worker, where a run of it may begin unheard."""
        job = self._by_key.get(key)
        if job is None:
            return
        job.ended_on = None
        job.assigned = True
        if job.run is None:
            job.worker = worker

    def on_unstarted(self, key: str) -> None:
        """Take note that a worker has not begun with a key, and will not."""
        job = self._by_key.get(key)
        if job is not None and job.run is None:
            job.assigned, job.worker = False, None

    def on_finished(self, key: str, worker: str | None, nbytes: int | None = None) -> None:
        """Take note that a key has ended on a worker, which may be another than it began on.

        ``nbytes`` is the size of its value; without one it has ended in an error.
        """
        job = self._by_key.get(key)
        if job is None:
            return
        job.ended_on = worker
        job.nbytes = nbytes
        if job.end_reported:
            self._after_both_ends(job)

    def on_released(
        self, key: str, worker: str | None, *, alive: bool, leaving: bool = False
    ) -> None:
        """Take note that a key is on its worker no longer, but wanted: it will run again.

        A worker that is ``alive`` or ``leaving`` was not lost; Dask had another reason. Unless
        it has given the key back, a run may have begun there, so the next is another attempt.
        """
        job = self._by_key.get(key)
        if job is None:
            return
        job.ended_on = None
        where = worker or job.worker or "its worker"
        if job.end_reported:  # a job whose end is told does not run again
            self._after_both_ends(job)
        elif not job.assigned:
            job.worker = None
        elif not alive and (job.canceled or not leaving):
            self._lost(job, where)
        elif job.canceled:
            self._cluster.drop([key])
        else:
            if job.run is not None:
                self._cluster.end_run(where, job.run)
            left, took = (
                f"Worker {where} is leaving; the job",
                f"Dask took the job from worker {where}; it",
            )
            self.attempts.next(job, f"{left if leaving else took} is tried again")

    def _lost(self, job: JobState, worker: str) -> None:
        job.lost_on.append(worker)
        if job.canceled:
            self._end(job, JobStatus.CANCELED)
            return
        reason = self._cluster.loss_reason(worker)
        why = f" ({reason})" if reason else ""
        when = "while the job ran" if job.run is not None else "with the job"
        self.attempts.next(job, f"Worker {worker} was lost {when}{why}; it is tried again")

    def on_loss_explained(self, worker: str) -> None:
        """Tell the jobs that were on a worker why it was lost, when that is known only now."""
        for job in self._by_id.values():
            if job.lost_on and job.lost_on[-1] == worker and not job.end_reported:
                self._say(job, log=f"Worker {worker}: {self._cluster.loss_reason(worker)}.\n")

    def on_failed(
        self, key: str, reason: str, *, raised: bool = False, worker: str | None = None
    ) -> None:
        """Take note that Dask has given up on a key, which no run has told the end of.

        ``raised`` says that the run raised, so that it may be tried again; ``worker`` is the
        last of the workers that were lost with it.
        """
        job = self._by_key.get(key)
        if job is None or job.end_reported:
            return
        if job.canceled:
            self._end(job, JobStatus.CANCELED)
            return
        if raised and self._may_try_again(job):
            self._say(job, log=reason + "\n")
            self._try_again(job)
            return
        if worker is not None:
            job.lost_on.append(worker)
        self._fail(job, reason + job.describe_losses(self._cluster.loss_reason))

    def is_queued(self, key: str) -> bool:
        """Say whether a key is that of a job that is to run, and of which no run is known."""
        job = self._by_key.get(key)
        return job is not None and job.is_queued

    def is_open(self, key: str) -> bool:
        """Say whether the end of the job under this key is not known yet."""
        job = self._by_key.get(key)
        return job is not None and not job.end_reported

    def on_forgotten(self, key: str) -> None:
        """Take note that Dask has forgotten a key; if its end is not known it runs again."""
        self.retained.lose(key)
        job = self._by_key.get(key)
        if job is None:
            return
        job.nbytes = None
        if job.end_reported:
            self._after_both_ends(job)
            return
        if job.canceled:
            self._end(job, JobStatus.CANCELED)
            return
        job.forgotten += 1
        if job.forgotten > _MOST_FORGOTTEN:
            reason = (
                f"Dask forgot the task {job.forgotten} times before it told its end, so it is "
                "not tried again. Look in the scheduler's log for why, and start the job anew."
            )
            self._fail(job, reason)
            return
        if job.assigned or job.attempt == job.spec.attempt:
            self.attempts.next(job, "Dask forgot the task before it told its end; it runs again")
        self.attempts.take_fresh_key(job)
        self.dependencies.start([job])

    # -- from Girder --------------------------------------------------------------------------

    def on_verdict(self, job_id: str, kind: str) -> None:
        """Take note of what Girder says of a job: ``done``, ``stale``, ``gone`` or ``cancel``."""
        job = self._by_id.get(job_id)
        if job is None:
            return
        if kind == "cancel":
            self.cancel([job_id])
        elif kind in ("stale", "gone"):
            logger.info("Girder says that job %s is %s; it is stopped", job_id, kind)
            worker = self._cluster.assigned_to(job.spec.key)
            if worker is not None:
                self._cluster.stop(worker, [job.spec.key], lambda _key, _worker: None)
            self._remove(job, drop=True)
        elif job.end_reported:
            job.acknowledged = True
            if job.finished:
                self._remove(job, drop=False)

    # -- within -------------------------------------------------------------------------------

    def _end(
        self, job: JobState, status: JobStatus, *, log: str | None = None, error: str | None = None
    ) -> None:
        job.status = status
        self._say(job, status=int(status), log=log, error=error)
        self._after_end(job)

    def _fail(self, job: JobState, reason: str) -> None:
        self._end(job, JobStatus.ERROR, log=reason + "\n", error=reason)

    def _after_end(self, job: JobState) -> None:
        """See to all that its end means for others."""
        job.end_reported = True
        job.stop_waiting()
        if job.status != JobStatus.SUCCESS or job.nbytes is not None:
            self._after_both_ends(job)
        for job_id in self._graph.remove(job.spec.id):
            self.retained.reconsider(job_id)

    def _after_both_ends(self, job: JobState) -> None:
        """See to what becomes of its value: its end is told by the run and by Dask."""
        if job.finished:
            return
        job.finished = True
        if job.status != JobStatus.SUCCESS or job.nbytes is None:
            self._cluster.drop([job.spec.key])
        else:
            self.retained.add(job.spec.id, job.spec.key, job.nbytes, stored=job.result_stored)
        self.dependencies.tell(job.spec.id)
        if job.acknowledged:
            self._remove(job, drop=False)

    def _say(self, job: JobState, **fields: Any) -> None:
        self._record(JobEvent(id=job.spec.id, attempt=job.attempt, time=time.time(), **fields))

    def _remove(self, job: JobState, *, drop: bool) -> None:
        job_id = job.spec.id
        job.stop_waiting()
        self._by_id.pop(job_id, None)
        self._by_key.pop(job.spec.key, None)
        self._forget(job_id, job.attempt)
        for free in self._graph.remove(job_id):
            self.retained.reconsider(free)
        if drop:
            self.retained.release(job_id)
            self._cluster.drop([job.spec.key])
        elif job.end_reported:
            self._ended_before[job_id] = job.attempt, self._clock()
            self._graph.learn(DependencyOutcome(job_id, job.status, job.spec.title))
        self.dependencies.tell(job_id)
