"""Dispatcher of jobs: it handles the events of Dask, of runs and of Girder.

Events come from three sides. Dask's transitions show where a job is assigned, runs on the workers
report what they do, and Girder answers updates. The dispatcher turns the events into one
consistent history per job, which the recorder delivers. It knows Dask only as a
:class:`~girder_dask.scheduler.cluster_interface.Cluster`, so that tests drive it without Dask.

A *run* is one execution on one worker. Only the events of the admitted run count: the run on the
worker to which Dask has assigned the job. When Dask takes the job from that worker, the run is
closed and the next attempt begins. Later events of a worker that was believed dead are dropped.

A job that depends on others is blocked until each of them has succeeded, and uses no thread
meanwhile. Results that are still on the cluster are passed to it as keys.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.protocol.messages import JobEvent, JobSpec
from girder_dask.scheduler.cluster_interface import Cluster
from girder_dask.scheduler.event_recorder import Recorder
from girder_dask.scheduler.job_state import JobState, JobTable, RetryCause
from girder_dask.scheduler.job_transitions import JobTransitions
from girder_dask.utils.bounded_dict import BoundedDict

__all__ = ["Dispatcher"]

logger = logging.getLogger(__name__)

# How often Dask may forget the task of a job before the job fails.
_MAX_TIMES_FORGOTTEN = 5
_MAX_EARLY_CANCELS = 10_000


class Dispatcher:
    """The dispatcher of a scheduler's jobs, which accepts them and handles their events.

    Parameters
    ----------
    jobs
        The table of jobs.
    transitions
        Starts and ends jobs.
    cluster
        The Dask cluster.
    recorder
        Reports events to Girder.
    """

    def __init__(
        self, jobs: JobTable, transitions: JobTransitions, cluster: Cluster, recorder: Recorder
    ) -> None:
        #: The table of jobs.
        self.jobs = jobs
        self._transitions = transitions
        self._cluster = cluster
        self._recorder = recorder
        self._early_cancels = BoundedDict[str, None](_MAX_EARLY_CANCELS)

    def __contains__(self, key: str) -> bool:
        return self.jobs.by_key(key) is not None or key in self._transitions.retained

    # -- submission and cancellation ----------------------------------------------------------

    def accept(self, specs: Iterable[JobSpec]) -> list[str]:
        """Accept jobs, except those that the scheduler already has or that have just ended.

        Girder may have sent a job before it learned that the job had ended.

        Returns
        -------
        list of str
            The ids of all given jobs.
        """
        new: list[JobState] = []
        specs = list(specs)
        for spec in specs:
            if self._transitions.has_just_ended(spec):
                continue
            known = self.jobs.get(spec.id)
            if known is not None and known.spec.attempt >= spec.attempt:
                self._transitions.report_state(known)
                continue
            if known is not None:
                self._transitions.abandon(known)
            job = self._transitions.add(spec)
            job.canceled = spec.id in self._early_cancels
            new.append(job)
        for job in new:
            self._recorder.record(job.event())  # acknowledges the job
            if job.canceled:
                self._transitions.end(job, JobStatus.CANCELED)
        self._transitions.start([job for job in new if not job.canceled])
        return [spec.id for spec in specs]

    def cancel(self, ids: Iterable[str]) -> None:
        """Cancel jobs: running ones are asked to stop, the others end at once.

        A job that is assigned to a worker may have started there unreported, so the worker is
        asked.
        """
        assigned: dict[str, list[str]] = {}
        for job_id in ids:
            job = self.jobs.get(job_id)
            if job is None:  # it may still arrive
                self._early_cancels[job_id] = None
            if job is None or job.end_reported:
                continue
            job.canceled = True
            worker = self._cluster.assigned_to(job.spec.key)
            if worker is not None:
                assigned.setdefault(worker, []).append(job.spec.key)
            elif job.run is None and job.finished_on is None:
                self._transitions.end(job, JobStatus.CANCELED)
        for worker, keys in assigned.items():
            self._cluster.cancel_runs(worker, keys, self._on_unstarted_when_canceled)

    def _on_unstarted_when_canceled(self, key: str, worker: str) -> None:
        job = self.jobs.by_key(key)
        if job is None or job.end_reported or job.run is not None or not job.canceled:
            return
        if self._cluster.assigned_to(key) in (None, worker):
            self._transitions.end(job, JobStatus.CANCELED)
        else:  # Dask has moved it meanwhile
            self.cancel([job.spec.id])

    def undecided(self, ids: Iterable[str]) -> list[str]:
        """Return the ids of those canceled jobs that may have started unreported."""
        jobs = self.jobs.of_ids(ids)
        return [job.spec.id for job in jobs if job.run is None and not job.end_reported]

    def started(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the attempts, by job id, of those jobs that have started or may have."""
        jobs = self.jobs.of_ids(ids)
        return {
            job.spec.id: job.attempt for job in jobs if job.run is not None or not job.end_reported
        }

    def key_of(self, job_id: str) -> str | None:
        """Return the key under which Dask has, or will have, the result of a job."""
        job = self.jobs.get(job_id)
        if job is not None and not job.end_reported:
            return job.spec.key
        if job is not None and job.status == JobStatus.SUCCESS and not job.finished:
            return job.spec.key
        return self._transitions.retained.key(job_id)

    # -- events of runs -----------------------------------------------------------------------

    def on_run_event(self, event: JobEvent) -> bool:
        """Handle an event of a run. Return True if that is the admitted run."""
        job = self.jobs.get(event.id)
        if job is None or job.end_reported or event.attempt != job.spec.attempt:
            return False
        if not self.jobs.try_admit(job, event, self._cluster.assigned_to(job.spec.key)):
            return False
        status = None if event.status is None else JobStatus(event.status)
        if status == JobStatus.ERROR and not event.permanent and job.may_retry:
            bare = replace(event, status=None, error=None, result=None, exception=None)
            self._recorder.record(replace(bare, attempt=job.attempt))
            self._transitions.retry(job)
            return True
        if event.retry is not None:
            return self._transitions.retry_as_requested(job, event, event.retry)
        if status is not None:
            self.jobs.set_status(job, status)
        if event.attempt != job.attempt or (event.exception and status != JobStatus.ERROR):
            exception = event.exception if status == JobStatus.ERROR else None
            event = replace(event, attempt=job.attempt, exception=exception)
        self._recorder.record(event)
        if status in FINAL:
            job.result_stored = event.result is not None
            self._transitions.on_end_reported(job)
        return True

    # -- events of Dask -----------------------------------------------------------------------

    def on_assigned(self, key: str, worker: str) -> None:
        """Record that Dask assigned the task to a worker, where a run may now start unreported."""
        job = self.jobs.by_key(key)
        if job is None:
            return
        job.finished_on = None
        job.assigned = True
        if job.run is None:
            self.jobs.place(job, worker)

    def on_unstarted(self, key: str) -> None:
        """Record that a worker has not started a task and will not start it."""
        job = self.jobs.by_key(key)
        if job is not None and job.run is None:
            job.assigned = False
            self.jobs.place(job, None)

    def on_finished(self, key: str, worker: str | None, nbytes: int | None = None) -> None:
        """Record that a task has finished, on a worker that may not be the one it started on.

        Parameters
        ----------
        nbytes
            The size of its result, None if it raised.
        """
        job = self.jobs.by_key(key)
        if job is None:
            return
        job.finished_on = worker
        job.nbytes = nbytes
        if job.end_reported:
            self._transitions.finish(job)

    def on_released(
        self, key: str, worker: str | None, *, alive: bool, leaving: bool = False
    ) -> None:
        """Handle a task that Dask took from its worker and will run again.

        A worker that is ``alive`` or ``leaving`` was not lost; Dask had another reason. Unless it
        returned the task unstarted, a run may have started there, so the next attempt begins.
        """
        job = self.jobs.by_key(key)
        if job is None:
            return
        job.finished_on = None
        where = worker or job.worker or "its worker"
        if job.end_reported:  # it does not run again
            self._transitions.finish(job)
        elif not job.assigned:
            self.jobs.place(job, None)
        elif not alive and (job.canceled or not leaving):
            self._on_worker_lost(job, where)
        elif job.canceled:
            self._cluster.release([key])
        else:
            if job.run is not None:
                self._cluster.drop_run(where, job.run)
            cause = RetryCause.WORKER_LEFT if leaving else RetryCause.DASK
            why = f"Dask took the job from worker {where}; it is retried"
            if leaving:
                why = f"Worker {where} is leaving; the job is retried"
            self._transitions.next_attempt(job, cause, why)

    def _on_worker_lost(self, job: JobState, worker: str) -> None:
        job.lost_workers.append(worker)
        if job.canceled:
            self._transitions.end(job, JobStatus.CANCELED)
            return
        reason = self._cluster.loss_reason(worker)
        why = f" ({reason})" if reason else ""
        when = "while the job ran" if job.run is not None else "with the job"
        log = f"Worker {worker} was lost {when}{why}; it is retried"
        self._transitions.next_attempt(job, RetryCause.WORKER_LOST, log)

    def on_loss_explained(self, worker: str) -> None:
        """Write the reason for a worker's loss, known only now, to the logs of its jobs."""
        for job in self.jobs:
            if job.lost_workers and job.lost_workers[-1] == worker and not job.end_reported:
                log = f"Worker {worker}: {self._cluster.loss_reason(worker)}.\n"
                self._recorder.record(job.event(log=log))

    def on_failed(
        self, key: str, reason: str, *, raised: bool = False, lost_worker: str | None = None
    ) -> None:
        """Handle a task that Dask gave up on, whose run has not reported its end.

        Parameters
        ----------
        raised
            Whether the run raised, so that it may be retried.
        lost_worker
            The last of the workers that were lost with it.
        """
        job = self.jobs.by_key(key)
        if job is None or job.end_reported:
            return
        if job.canceled:
            self._transitions.end(job, JobStatus.CANCELED)
        elif raised and job.may_retry:
            self._recorder.record(job.event(log=reason + "\n"))
            self._transitions.retry(job)
        else:
            if lost_worker is not None:
                job.lost_workers.append(lost_worker)
            self._transitions.fail(job, reason + job.describe_losses(self._cluster.loss_reason))

    def on_forgotten(self, key: str) -> None:
        """Handle a task that Dask forgot: the job runs again unless its end is reported."""
        self._transitions.retained.on_lost(key)
        job = self.jobs.by_key(key)
        if job is None:
            return
        job.nbytes = None
        if job.end_reported:
            self._transitions.finish(job)
            return
        if job.canceled:
            self._transitions.end(job, JobStatus.CANCELED)
            return
        job.times_forgotten += 1
        if job.times_forgotten > _MAX_TIMES_FORGOTTEN:
            reason = (
                f"Dask forgot the task {job.times_forgotten} times before it reported its end, so "
                "it is not retried. The scheduler's log has the reason. Start the job again."
            )
            self._transitions.fail(job, reason)
            return
        if job.assigned or job.attempt == job.spec.attempt:
            why = "Dask forgot the task before it reported its end; the job runs again"
            self._transitions.next_attempt(job, RetryCause.DASK, why)
        self._transitions.renew_key(job)
        self._transitions.start([job])

    # -- answers of Girder --------------------------------------------------------------------

    def on_verdict(self, job_id: str, kind: str) -> None:
        """Handle Girder's answer to an update: ``done``, ``stale``, ``gone`` or ``cancel``."""
        job = self.jobs.get(job_id)
        if job is None:
            return
        if kind == "cancel":
            self.cancel([job_id])
        elif kind in ("stale", "gone"):
            logger.info("Girder answers that job %s is %s; it is stopped", job_id, kind)
            worker = self._cluster.assigned_to(job.spec.key)
            if worker is not None:
                self._cluster.cancel_runs(worker, [job.spec.key], lambda _key, _worker: None)
            self._transitions.abandon(job)
        elif job.end_reported:
            job.acknowledged = True
            if job.finished:
                self._transitions.remove(job)

    def on_dependency_states(self, asked: Iterable[str], jobs: Mapping[str, Any]) -> None:
        """Handle Girder's answer about dependencies: job documents by id."""
        for job_id in self._transitions.dependencies.record_answer(asked, jobs):
            self._transitions.start_dependents(job_id)
