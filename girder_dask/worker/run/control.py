"""Control of one run from other threads: cancel, supersede, time out or interrupt it."""

from __future__ import annotations

import threading

from girder_dask.errors import JobCanceled, JobTimeout
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobSpec
from girder_dask.tasks.running_job import JobManager
from girder_dask.worker.failures import Failure, failure_of
from girder_dask.worker.interruption.job_threads import JobThreads
from girder_dask.worker.isolation.task_process import ProcessFailed, TaskProcess
from girder_dask.worker.location import WorkerLocation
from girder_dask.worker.run.process_tree import ProcessTree
from girder_dask.worker.run.run_interruption import RunInterruption
from girder_dask.worker.run_sink import RunSink

__all__ = ["RunControl"]


class RunControl:
    """Control of one run. Any thread may call its methods.

    Parameters
    ----------
    spec
        The job that the run executes, with the number of its attempt.
    sink
        The sink of the run.
    location
        Where it runs.

    Attributes
    ----------
    manager
        The ``job_manager`` of the task. Its status is CANCELING once the run is canceled.
    processes
        The processes that the task starts in this worker.
    interruption
        The threads of the run.
    started
        Whether the function was called.
    reports_end
        Whether this run reports how the job ends. It stops once another run has taken over.
    """

    def __init__(self, spec: JobSpec, sink: RunSink, location: WorkerLocation) -> None:
        self.spec = spec
        self.sink = sink
        self.location = location
        self.manager = JobManager(sink, JobStatus.QUEUED)
        self.processes = ProcessTree(sink.log, sink.run)
        self.interruption = RunInterruption(JobThreads(sink.log), self.processes)
        self.started = False
        self.reports_end = True
        self._process: TaskProcess | None = None
        self._lock = threading.Lock()

    @property
    def id(self) -> str:
        """The unique id of this run."""
        return self.sink.run

    @property
    def key(self) -> str:
        """The key of the run's task in Dask."""
        return self.sink.spec.key

    # -- for the run itself --------------------------------------------------------------------

    @property
    def is_canceled(self) -> bool:
        """Whether the job was canceled, or another run has taken over."""
        return self.manager.status == JobStatus.CANCELING

    @property
    def timed_out(self) -> bool:
        """Whether the task has reached its time limit."""
        process = self._process
        return process.timed_out if process is not None else self.interruption.timed_out

    @property
    def is_stopped(self) -> bool:
        """Whether the run was canceled, or has reached its time limit."""
        return self.is_canceled or self.interruption.timed_out

    def check(self) -> None:
        """Raise JobCanceled if the run must end."""
        if self.is_canceled:
            raise JobCanceled(job_id=self.spec.id)
        if self.sink.is_dropped:  # a suspended process must not resume an upload
            raise self.superseded()

    def enter(self, status: JobStatus) -> None:
        """Report the next status of the job, unless the run must end.

        Raises
        ------
        JobCanceled
            If the run must end.
        """
        with self._lock:
            self.check()
            self.manager.updateStatus(status)

    def superseded(self) -> JobCanceled:
        """Leave the end of the job to another run, and return the exception that ends this one."""
        self.reports_end = False
        return JobCanceled("The job was given to another worker.", job_id=self.spec.id)

    def failure_of(self, error: BaseException) -> Failure:
        """Return the failure to report for an error that ended the run."""
        if type(error) is ProcessFailed:
            return error.failure
        reason = "timeout" if self.timed_out else "canceled" if self.is_canceled else None
        return failure_of(error, self.spec, self.location, started=self.started, reason=reason)

    @property
    def process(self) -> TaskProcess | None:
        """The process of the task, None if it runs in this one."""
        return self._process

    @process.setter
    def process(self, process: TaskProcess) -> None:
        self.processes.spared |= process.pids
        with self._lock:
            self._process = process
            if self.is_canceled:
                process.cancel()

    # -- for other threads ---------------------------------------------------------------------

    def cancel(self) -> None:
        """Ask the task to stop: its ``canceled`` becomes true."""
        with self._lock:
            self.manager.status = JobStatus.CANCELING
            if self._process is not None:
                self._process.cancel()

    def drop(self) -> None:
        """Cancel the run because another one has taken over. It no longer reports its end."""
        self.reports_end = False  # the other run calls the hooks
        self.cancel()

    def expire(self) -> bool:
        """Record that the time limit is reached. Return False if the function has returned."""
        return self.interruption.expire()

    def interrupt(self) -> bool:
        """Raise JobInterrupted in the task at its next Python instruction, or stop its process.

        Return False if the process was stopped. It is killed after its grace, so it is never stuck.
        """
        process = self._process
        if process is not None and process.interrupt():
            return False
        self.interruption.interrupt()
        return True

    def kill_processes(self) -> None:
        """Kill the processes that the task has started in this worker."""
        self.processes.kill()

    def give_up(self) -> None:
        """Report the timeout of a run before its process ends with it."""
        if self.timed_out and self.reports_end:
            failure = self.failure_of(JobTimeout(job_id=self.spec.id))
            self.reports_end = False
            self.sink.write(failure.text)
            self.sink.finish(failure.status, error=failure.error, exception=failure.exception)

    def write(self, text: str) -> None:
        """Append text to the log."""
        self.sink.write(text)

    @property
    def stuck_reason(self) -> str:
        """Why the run does not end although it was interrupted."""
        return self.interruption.stuck_reason
