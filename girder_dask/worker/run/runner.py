"""One run of a job on a worker: inputs, call, result, outputs, clean-up.

Nothing that a task does gets past here: it may raise anything, call ``sys.exit()``, be
missing, or end its process. The end of the run and the rest of its log are one event.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dask.sizeof import sizeof

from girder_dask.errors import CancelInterrupt, JobCanceled, JobFailed, JobInterrupted, JobTimeout
from girder_dask.jobs import JobStatus
from girder_dask.protocol.error_text import summary
from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.payload import (
    PACKING,
    Call,
    NotOpened,
    Unpicklable,
    is_plain,
    open_call,
    open_value,
    pack_value,
)
from girder_dask.protocol.redaction import secrets_in
from girder_dask.tasks import context
from girder_dask.tasks.completion import completed
from girder_dask.tasks.context import JobManager, RunningJob
from girder_dask.tasks.task import find_task
from girder_dask.worker import gpus
from girder_dask.worker.capture import output_capture
from girder_dask.worker.concurrency.forks import ending_forks
from girder_dask.worker.concurrency.process_tree import ProcessTree
from girder_dask.worker.context import WorkerContext
from girder_dask.worker.failures import (
    Failure,
    describe_error,
    exception_of,
    failure_of,
    was_killed,
)
from girder_dask.worker.interruption.job_threads import JobThreads
from girder_dask.worker.isolation.child import ProcessSpec
from girder_dask.worker.isolation.task_process import THREAD_REMEDY, ProcessFailed, TaskProcess
from girder_dask.worker.job_context import NO_ADDRESS, child_jobs, open_session, running_job
from girder_dask.worker.outbox import RunSink
from girder_dask.worker.process_globals.job_scope import JobScope
from girder_dask.worker.run.fencing import await_recorded_attempt, record_start
from girder_dask.worker.run.input_values import resolved
from girder_dask.worker.run.run_interruption import RunInterruption
from girder_dask.worker.run.transform_runner import TransformRunner
from girder_dask.worker.run.workspace import Workspace

__all__ = ["Run"]

logger = logging.getLogger(__name__)

# A run that the scheduler does not hear for this long must not push outputs.
_CONFIRM_TIME = 300.0
# How long a run that leaves its job to another waits until the scheduler has what it said.
_LAST_WORDS_TIME = 2.0


@dataclass(frozen=True, slots=True)
class _End:
    """How a run ended. ``value`` is for Dask, ``result`` the same packed for Girder."""

    status: JobStatus
    value: Any = None
    result: bytes | None = None
    error: str | None = None
    failure: Failure | None = None


class Run:
    """One run of a job.

    Parameters
    ----------
    spec
        What to run.
    worker
        The worker it runs on.
    values
        The values of other jobs that Dask has brought, by the ids of these jobs.
    attempt
        Which attempt it is, if that is not the one of the spec: Dask runs a task again with
        the same spec when its worker was lost.
    is_leaving
        Says whether the worker is about to end. It may take a moment, and is asked when a
        signal has ended a process of the task: it may have been for all processes there.
    """

    def __init__(
        self,
        spec: JobSpec,
        worker: WorkerContext,
        values: Mapping[str, Any] | None = None,
        *,
        attempt: int | None = None,
        is_leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        # What the run says has the attempt of the spec, by which the scheduler knows it.
        self.spec = replace(spec, attempt=attempt or spec.attempt)
        self.worker = worker
        self._values = values
        self._is_leaving = is_leaving
        self._sink: RunSink = worker.outbox.open(spec)
        self._manager = JobManager(self._sink, JobStatus.QUEUED)
        self._process_tree = ProcessTree(self._sink.log, self._sink.run)
        self._interruption = RunInterruption(JobThreads(self._sink.log), self._process_tree)
        self._transforms: TransformRunner | None = None
        self._process: TaskProcess | None = None
        self._workspace = Workspace(worker.directory, f"job-{spec.id}-")
        self._inputs = Workspace(worker.directory, f"job-{spec.id}-inputs-")
        self._scope = JobScope(self._workspace.path, self._sink.write)
        self._surroundings = contextlib.ExitStack()
        self._started = False
        #: Whether what becomes of the job is for this run to say.
        self.reports_end = True
        self._lock = threading.Lock()

    @property
    def id(self) -> str:
        """What tells this execution from any other."""
        return self._sink.run

    @property
    def key(self) -> str:
        """The key under which Dask has it."""
        return self._sink.spec.key

    def __call__(self) -> Any:
        """Run, and return what the function returned.

        Raises
        ------
        Exception
            What the function raised; JobFailed where that is no ``Exception``, JobCanceled
            when the job was canceled.
        """
        self.worker.runs[self.id] = self
        try:
            if self.key in self.worker.refused:
                self.cancel()
            with output_capture.capturing_run(self._sink.log, self.spec.task.partition(":")[0]):
                end = self._end()
            failure = end.failure
            exception = failure.exception if failure is not None else None
            status = end.status if self.reports_end else None
            self._sink.finish(
                status,
                result=end.result,
                error=end.error,
                exception=exception,
                permanent=failure is not None and failure.permanent,
            )
            error = None if failure is None else exception_of(failure, self.spec.id)
        finally:
            del self.worker.runs[self.id]
            self._sink.secrets.close()
        if error is None:
            return end.value
        raise error

    def _end(self) -> _End:
        """Run to the end, whatever that is."""
        token = context.current.set(None)
        try:
            outcome = self._outcome()
            return self._failed(outcome) if isinstance(outcome, Failure) else outcome
        finally:
            self._clean_up()
            context.current.reset(token)

    def _outcome(self) -> _End | Failure:
        try:
            try:
                with self._no_forks():  # of transforms, say
                    return self._run()
            except BaseException as e:  # noqa: BLE001 - a task may raise anything at all
                self._interruption.attach()  # what the exception says of itself may take any time
                failure = self._failure_of(e)
                # What they hold ends here, and not in another job, whenever the collector comes.
                traceback.clear_frames(e.__traceback__)
                return failure
            finally:
                self._interruption.detach()
        except BaseException:  # noqa: BLE001 - an interruption may have come just before
            self._interruption.detach()
            # Not what was raised, in case that the task has made it.
            return self._failure_of(CancelInterrupt(job_id=self.spec.id))

    def _run(self) -> _End:
        wanted = float((self.spec.resources or {}).get(gpus.RESOURCE, 0))
        within = self._surroundings.enter_context
        self._scope.begin()
        ids = within(self.worker.gpus.allocated(wanted))
        api_url = self.worker.girder_of(self.spec)
        if api_url is None and self.spec.token is not None:
            self._sink.write(f"{NO_ADDRESS}\n")
        job = running_job(
            self.spec,
            manager=self._manager,
            work_dir=self._workspace.path,
            hostname=self.worker.location.hostname,
            api_url=api_url,
            gpus=ids,
        )
        context.current.set(job)
        within(child_jobs(api_url, self.spec.token, self.worker.dask_client, job))
        own_process = "process" in (self.spec.isolation, self.worker.isolation)
        if own_process and self.spec.isolation == "thread":
            self._sink.write(
                "This worker gives each job a process of its own (girder.worker.isolation), "
                "also one with isolation='thread'.\n"
            )
        if ids and not own_process and not within(gpus.exposed(ids)):
            own_process = True
            self._sink.write(
                f"Another task has GPUs in this worker's process, so this one, with GPU "
                f"{', '.join(ids)}, runs in a process of its own.\n"
            )
        self._transforms = transforms = TransformRunner(
            job,
            self.worker.cache,
            self._stop_if_canceled,
            confined=not self.spec.trusted,
            inputs=self._inputs,
        )
        self._interruption.attach()
        return self._work(job, transforms, own_process=own_process)

    def _work(self, job: RunningJob, transforms: TransformRunner, *, own_process: bool) -> _End:
        self._stop_if_canceled()
        call = open_call(self.spec.payload, unpickle=self.spec.trusted)
        self._sink.secrets.add(*secrets_in(call.session))
        transforms.take_on(call)
        try:
            value = self._called(job, transforms, call, own_process=own_process)
            shown, kept, note = self._keep(value)
            if call.hooks:
                shown, kept, note = self._keep(self._push(transforms, call, value))
            if note is not None:
                self._sink.write(f"girder_dask: the result is not kept with the job: {note}.\n")
        except BaseException as e:
            self._interruption.detach()  # what hooks do now is no part of the task
            self._leave_to_another(e)
            if self.reports_end:
                transforms.tell_hooks(call, self._sink.write)
            raise
        return _End(JobStatus.SUCCESS, value=shown, result=kept, error=note)

    def _called(
        self, job: RunningJob, transforms: TransformRunner, call: Call, *, own_process: bool
    ) -> Any:
        """Load the function, fetch its arguments and call it."""
        open_session(job, call.session)
        with self._scope.importing():
            function = self._in_process(job, call) if own_process else self._in_thread(call)
        self._scope.enter()
        call = resolved(call, self._values, job)
        args, kwargs = self._fetch(transforms, call)
        self._await_number()
        if self.spec.at_most_once:
            location, attempt = str(self.worker.location), self.spec.attempt
            record_start(
                job.girder_client, self.spec.id, attempt=attempt, run=self.id, worker=location
            )
        self._enter(JobStatus.RUNNING)
        self._started = True
        value = function(*args, **kwargs)
        self._stop_if_canceled()
        return value

    def _await_number(self) -> None:
        ask, key, attempt = self.worker.may_start, self._sink.spec.key, self.spec.attempt
        if attempt == 1 or ask is None:
            return
        if not await_recorded_attempt(lambda: ask(key, attempt), self._stop_if_canceled):
            raise self._superseded()

    # -- the function --------------------------------------------------------------------------

    def _in_thread(self, call: Call) -> Callable[..., Any]:
        """Return the function, within its time limit."""
        function = self._function(call)
        output_capture.keep_import_time_state(self._sink.log)
        limit = functools.partial(self.worker.limit, self)

        def limited(*args: Any, **kwargs: Any) -> Any:
            with (
                self._interruption.time_limit(limit, self.spec.timeout, self.spec.id),
                self._no_forks(),
                output_capture.flushing_at_end(),
            ):
                value = completed(function, *args, **kwargs)
                self._tell_left()
                return value

        return limited

    def _tell_left(self) -> None:
        left = self._interruption.left()
        if left is not None:
            self._sink.write(
                f"The task returned while what it had started was still running: {left:.500}. The "
                "job ends without it, and what it writes from now on may be lost. Wait for it "
                "before returning: join() threads, shut pools down, wait() for processes.\n"
            )

    def _no_forks(self) -> contextlib.AbstractContextManager[None]:
        """End here whatever process is forked within."""
        return ending_forks(self._sink.log.flush, describe_error, callable)

    def _function(self, call: Call) -> Callable[..., Any]:
        return call.function or find_task(self.spec.task, strictly=not self.spec.trusted)

    def _in_process(self, job: RunningJob, call: Call) -> Callable[..., Any]:
        """Return what calls the function in a process of its own, which waits for its inputs."""
        import cloudpickle

        function = None if call.function is None else cloudpickle.dumps(call.function)
        worker = self.worker
        spec = ProcessSpec(
            job=replace(self.spec, payload=b""),
            location=worker.location,
            work_dir=self._workspace.path(),
            function=function,
            api_url=job.request.girder_api_url,
            gpus=job.request.gpus,
            log_level=worker.log_level,
            scheduler=pickle.dumps(worker.scheduler) if worker.scheduler else None,
            path=tuple(sys.path),
            session=call.session,
        )
        process = TaskProcess(
            spec,
            worker.fork_server_supervisor,
            log=self._sink.log,
            manager=self._manager,
            directory=worker.directory,
            grace=worker.grace,
        )
        self._process_tree.spared |= process.pids
        with self._lock:
            self._process = process
            if self._manager.status == JobStatus.CANCELING:
                process.cancel()
        process.load()

        def called(*args: Any, **kwargs: Any) -> Any:
            return process.call(args, kwargs, self.spec.timeout)

        return called

    # -- inputs and outputs --------------------------------------------------------------------

    def _fetch(
        self, transforms: TransformRunner, call: Call
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        if not transforms.needed(call):
            return call.args, call.kwargs
        self._enter(JobStatus.FETCHING_INPUT)
        return transforms.fetch(call)

    def _push(self, transforms: TransformRunner, call: Call, value: Any) -> Any:
        self._enter(JobStatus.PUSHING_OUTPUT)
        if not self._sink.confirm(_CONFIRM_TIME):
            raise self._superseded()
        if isinstance(value, Unpicklable):
            raise JobFailed(
                f"What the task returned cannot be given to its result hooks: {value.reason}. "
                f"Return a path or plain values, or {THREAD_REMEDY}.",
                job_id=self.spec.id,
            )
        return transforms.push(call, value, self._cwd())

    def _cwd(self) -> str | None:
        """Return where the function was when it returned."""
        if self._process is not None and self._process.cwd is not None:
            self._scope.follow(self._process.cwd)
            return self._process.cwd
        with contextlib.suppress(OSError):  # it is gone
            return str(Path.cwd())
        return None

    def _keep(self, value: Any) -> tuple[Any, bytes | None, str | None]:
        """Return the value for Dask, and the packed value, or None and why it is not kept."""
        if isinstance(value, Unpicklable):
            return value, None, value.reason
        try:
            data = pack_value(value)
            if not is_plain(data):
                sizeof(value)  # Dask asks for that too, and SystemExit would end the worker
        except JobInterrupted:
            raise
        except BaseException as e:  # noqa: BLE001 - any error of a foreign __reduce__
            # Dask would fail to bring it to anybody, with a traceback in the logs of each part.
            reason = f"it cannot be pickled ({summary(e)})"
            return Unpicklable(reason), None, reason
        if len(data) > self.worker.max_result + PACKING:
            note = (
                f"it takes {len(data):,} bytes, more than the {self.worker.max_result:,} that "
                "are kept with a job (girder.worker.max-result)"
            )
            return value, None, note
        kept = self._sink.secrets.clean_data(data)
        if kept == data:
            return value, kept, None
        try:
            return open_value(kept, unpickle=True), kept, None
        except NotOpened as e:
            return Unpicklable(f"it held a secret of the job, and without it {e}"), kept, None

    # -- the end -------------------------------------------------------------------------------

    def _failed(self, failure: Failure) -> _End:
        if not self.reports_end:  # the next attempt has its own end
            return _End(failure.status, error=failure.error, failure=failure)
        self._sink.write(failure.text)
        if self._is_canceled and failure.status == JobStatus.ERROR and not self._timed_out:
            # Its answer to JobCanceled, or to what was taken from it.
            self._sink.write("The job was canceled.\n")
            return _End(JobStatus.CANCELED, failure=replace(failure, status=JobStatus.CANCELED))
        return _End(failure.status, error=failure.error, failure=failure)

    def _failure_of(self, error: BaseException) -> Failure:
        if type(error) is ProcessFailed:
            return error.failure
        reason = "timeout" if self._timed_out else "canceled" if self._is_canceled else None
        return failure_of(
            error, self.spec, self.worker.location, started=self._started, reason=reason
        )

    def _leave_to_another(self, error: BaseException) -> None:
        """End unheard, so that the job is tried again, if the worker's end has led to an error."""
        failure = error.failure if isinstance(error, ProcessFailed) else None
        killed = was_killed(error) if failure is None else failure.killed
        if not killed or self._is_canceled or self._timed_out or not self._is_leaving():
            return
        if failure is None or failure.exception is not None:
            self._sink.write(describe_error(error) if failure is None else failure.text)
        self._sink.write("A process of the task was ended together with its worker.\n")
        self._sink.confirm(_LAST_WORDS_TIME)
        self.drop()

    def _clean_up(self) -> None:
        """End the process, let transforms clean up, remove the directory: all, whatever happens."""
        try:
            with self._surroundings as ending:
                ending.callback(self._workspace.remove)
                ending.callback(self._inputs.remove)
                ending.callback(self._scope.end)
                if self._transforms is not None:
                    ending.callback(self._transforms.clean_up, self._sink.write)
                if self._is_stopped:
                    ending.callback(self._end_processes)
                    ending.callback(self._end_threads)
                else:
                    ending.callback(self._interruption.release)
                if self._process is not None:
                    ending.callback(self._process.close)
        except BaseException as e:
            logger.exception("Cleaning up after job %s", self.spec.id)
            self._sink.write(f"Cleaning up after the job failed: {summary(e)}\n")

    def _end_threads(self) -> None:
        """Wait for the threads that the task has left. Whoever stops a run interrupts them."""
        while not self._interruption.end_threads():
            pass

    def _end_processes(self) -> None:
        if not self._process_tree.end(self.worker.grace):
            pids = ", ".join(str(process.pid) for process in self._process_tree.left())
            self._sink.write(f"Processes of the job do not end, although killed: {pids}.\n")

    # -- being stopped, from other threads -----------------------------------------------------

    @property
    def _is_stopped(self) -> bool:
        """Whether the run was to end before its function did."""
        return self._is_canceled or self._interruption.timed_out

    @property
    def _is_canceled(self) -> bool:
        return self._manager.status == JobStatus.CANCELING

    @property
    def _timed_out(self) -> bool:
        process = self._process
        return process.timed_out if process is not None else self._interruption.timed_out

    def _enter(self, status: JobStatus) -> None:
        with self._lock:
            self._stop_if_canceled()
            self._manager.updateStatus(status)

    def _stop_if_canceled(self) -> None:
        if self._manager.status == JobStatus.CANCELING:
            raise JobCanceled(job_id=self.spec.id)
        if self._sink.is_dropped:  # an upload that was frozen must not go on
            raise self._superseded()

    def _superseded(self) -> JobCanceled:
        self.reports_end = False
        return JobCanceled("The job was given to another worker.", job_id=self.spec.id)

    def cancel(self) -> None:
        """Tell the task to stop: ``canceled`` becomes true."""
        with self._lock:
            self._manager.status = JobStatus.CANCELING
            if self._process is not None:
                self._process.cancel()

    def expire(self) -> bool:
        """Take note that the time of the task is over. False: it has ended in time."""
        return self._interruption.expire()

    def give_up(self) -> None:
        """Say how the job ends if this process does, with the run in it."""
        if self._timed_out and self.reports_end:
            failure = self._failure_of(JobTimeout(job_id=self.spec.id))
            self.reports_end = False  # nothing more is to be said of it
            self._sink.write(failure.text)
            self._sink.finish(failure.status, error=failure.error, exception=failure.exception)

    def drop(self) -> None:
        """Take note that nobody hears this run any more. It is to end, as if it were canceled."""
        self.reports_end = False  # what hooks hear is the matter of the other run
        self.cancel()

    def write(self, text: str) -> None:
        """Append text to the log."""
        self._sink.write(text)

    @property
    def stuck_reason(self) -> str:
        """What is said of a run that does not end although it is interrupted."""
        return self._interruption.stuck_reason

    def interrupt(self) -> None:
        """Raise JobInterrupted in the task, at its next Python instruction; end its process."""
        process = self._process
        if process is None or not process.interrupt():
            self._interruption.interrupt()

    def kill_processes(self) -> None:
        """Kill the processes that the task has started in this worker."""
        self._process_tree.kill()
