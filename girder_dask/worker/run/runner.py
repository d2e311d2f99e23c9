"""One run of a job, from its inputs to its clean-up.

A run always reaches its end: the task may raise anything, call ``sys.exit()``, be missing, or end
its process. The end of the run and the rest of its log are one event.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from girder_dask.celery.message_body import tokens
from girder_dask.errors import CancelInterrupt, JobFailed
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.names import GPU_RESOURCE
from girder_dask.protocol.payload import Call, Unpicklable, open_call
from girder_dask.protocol.redaction import secrets_in
from girder_dask.tasks import running_job
from girder_dask.tasks.running_job import RunningJob
from girder_dask.tasks.task import find_task
from girder_dask.worker import gpus
from girder_dask.worker.capture import output_capture
from girder_dask.worker.failures import Failure
from girder_dask.worker.girder_access import NO_ADDRESS, child_jobs, make_running_job, open_session
from girder_dask.worker.isolation.task_process import THREAD_REMEDY
from girder_dask.worker.run.control import RunControl
from girder_dask.worker.run.execution import (
    guard_forks,
    in_process,
    in_thread,
    message_call,
    with_task_options,
)
from girder_dask.worker.run.fencing import await_recorded_attempt, record_start
from girder_dask.worker.run.input_values import resolved
from girder_dask.worker.run.outcome import RunOutcome, failed, hand_over_if_leaving
from girder_dask.worker.run.resources import RunResources
from girder_dask.worker.run.result import PackedResult, pack_result
from girder_dask.worker.run.transform_runner import TransformRunner
from girder_dask.worker.worker_context import WorkerContext

__all__ = ["Run"]

# A run whose events the scheduler does not acknowledge for this long must not push outputs.
_CONFIRM_TIMEOUT_S = 300.0


class Run:
    """One run of a job.

    Parameters
    ----------
    spec
        The job, its call and its attempt, as the scheduler sent them.
    worker
        The context that the runs of the worker share.
    values
        Results of other jobs that Dask has passed, by job id.
    attempt
        The number of the attempt, if it differs from that of ``spec``: Dask reruns a task with
        the same spec after it has lost the worker.
    is_leaving
        Returns True if the worker is closing. The call may block for a moment.

    Attributes
    ----------
    control
        The control by which other threads stop the run.
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
        # Events carry the attempt of ``spec``, by which the scheduler knows the run.
        self._sink = worker.outbox.open(spec)
        self.spec = replace(spec, attempt=attempt or spec.attempt)
        self.worker = worker
        self.control = RunControl(self.spec, self._sink, worker.location)
        self._values = values
        self._is_leaving = is_leaving
        self._resources = RunResources(self.spec, worker.directory, self._sink)

    def __call__(self) -> Any:
        """Execute the run, and return the value of the function.

        Raises
        ------
        Exception
            The exception of the function; JobFailed if that is not an ``Exception``;
            JobCanceled if the job was canceled.
        """
        control, runs = self.control, self.worker.runs
        runs[control.id] = control
        try:
            if control.key in self.worker.refused:
                control.cancel()
            with output_capture.capturing_run(self._sink.log, self.spec.task.partition(":")[0]):
                outcome = self._outcome()
            error = outcome.report(control)
        finally:
            del runs[control.id]
            self._sink.secrets.close()
        if error is None:
            return outcome.value
        raise error

    def _outcome(self) -> RunOutcome:
        """Execute the run, release its resources, and return its outcome."""
        token = running_job.current.set(None)
        try:
            outcome = self._outcome_or_failure()
            return failed(outcome, self.control) if isinstance(outcome, Failure) else outcome
        finally:
            self._resources.release(self.control, self.worker.grace_s)
            running_job.current.reset(token)

    def _outcome_or_failure(self) -> RunOutcome | Failure:
        interruption = self.control.interruption
        try:
            try:
                with guard_forks(self.control):  # opening a call may fork, too
                    return self._run()
            except BaseException as e:  # noqa: BLE001 - a task may raise anything at all
                interruption.attach()  # describing the exception may take any time
                failure = self.control.failure_of(e)
                # Free what the frames hold now, not when the garbage of another job is collected.
                traceback.clear_frames(e.__traceback__)
                return failure
            finally:
                interruption.detach()
        except BaseException:  # noqa: BLE001 - an interruption may have come just before
            interruption.detach()
            # Not the exception itself, as the task may have created it.
            return self.control.failure_of(CancelInterrupt(job_id=self.spec.id))

    # -- the steps -----------------------------------------------------------------------------

    def _run(self) -> RunOutcome:
        """Prepare the environment of the task, and run it there."""
        enter = self._resources.enter
        self._resources.scope.begin()
        wanted = float((self.spec.resources or {}).get(GPU_RESOURCE, 0))
        ids = enter(self.worker.gpus.allocated(wanted))
        api_url = self.worker.girder_of(self.spec)
        if api_url is None and self.spec.token is not None:
            self._sink.write(f"{NO_ADDRESS}\n")
        job = make_running_job(
            self.spec,
            manager=self.control.manager,
            work_dir=self._resources.work_dir.path,
            hostname=self.worker.location.hostname,
            api_url=api_url,
            gpus=ids,
            container_scope=self._resources.container_scope,
        )
        running_job.current.set(job)
        enter(child_jobs(api_url, self.spec.token, self.worker.dask_client, job))
        own_process = self._needs_process(ids)
        self._resources.transforms = transforms = TransformRunner(
            job,
            self.worker.cache,
            self.control.check,
            confined=not self.spec.trusted,
            inputs=self._resources.inputs,
            guard_forks=functools.partial(guard_forks, self.control),
        )
        self.control.interruption.attach()
        return self._run_call(job, transforms, own_process=own_process)

    def _needs_process(self, gpu_ids: tuple[str, ...]) -> bool:
        """Return True if the task needs its own process. If not, expose its GPUs in this one."""
        if "process" in (self.spec.isolation, self.worker.isolation):
            if self.spec.isolation == "thread":
                self._sink.write(
                    "This worker runs each job in a process of its own (girder.worker.isolation), "
                    "even one with isolation='thread'.\n"
                )
            return True
        if not gpu_ids or self._resources.enter(gpus.exposed(gpu_ids)):
            return False
        self._sink.write(
            f"Another task uses GPUs in this worker's process, so this one, with GPU "
            f"{', '.join(gpu_ids)}, runs in a process of its own.\n"
        )
        return True

    def _run_call(
        self, job: RunningJob, transforms: TransformRunner, *, own_process: bool
    ) -> RunOutcome:
        self.control.check()
        call = open_call(self.spec.payload, unpickle=self.spec.trusted)
        self._sink.secrets.add(*secrets_in(call.session))
        transforms.register(call)
        try:
            value = self._called(job, transforms, call, own_process=own_process)
            result = self._pack(value)
            if call.hooks:
                result = self._pack(self._push(transforms, call, value))
            if result.note is not None:
                self._sink.write(
                    f"girder_dask: the result is not kept with the job: {result.note}.\n"
                )
        except BaseException as e:
            self.control.interruption.detach()  # the hooks of a failed run are not interrupted
            hand_over_if_leaving(e, self.control, self._is_leaving)
            if self.control.reports_end:
                transforms.notify_failure(call, self._sink.write)
            raise
        return RunOutcome(
            JobStatus.SUCCESS, value=result.value, result=result.data, error=result.note
        )

    def _called(
        self, job: RunningJob, transforms: TransformRunner, call: Call, *, own_process: bool
    ) -> Any:
        """Load the function, fetch its arguments and call it."""
        open_session(job, call.session)
        with self._resources.scope.importing():
            if call.message is not None:
                self._sink.secrets.add(*tokens(call.message))
                own_directory = self._resources.work_dir.path() if own_process else None
                self.spec = self.control.spec = with_task_options(
                    self.spec, call.message, own_process=own_process
                )
                call = message_call(call.message, self.spec, own_directory)
            if own_process:
                work_dir = self._resources.work_dir.path()
                function = in_process(call, job, self.control, self.worker, work_dir)
            else:
                function = in_thread(self._function(call), self.control, self.worker)
        self._resources.scope.enter()
        args, kwargs = self._fetch(transforms, resolved(call, self._values, job))
        self._await_start(job)
        self.control.enter(JobStatus.RUNNING)
        self.control.started = True
        value = function(*args, **kwargs)
        self.control.check()
        return value

    def _function(self, call: Call) -> Callable[..., Any]:
        return call.function or find_task(self.spec.task, strictly=not self.spec.trusted)

    def _await_start(self, job: RunningJob) -> None:
        """Wait until no other run can get this attempt. Record the start of an at-most-once job."""
        ask, key, attempt = self.worker.may_start, self.control.key, self.spec.attempt
        check = self.control.check
        if attempt > 1 and ask and not await_recorded_attempt(lambda: ask(key, attempt), check):
            raise self.control.superseded()
        if self.spec.at_most_once:
            record_start(
                job.girder_client,
                self.spec.id,
                attempt=attempt,
                run=self.control.id,
                worker=str(self.worker.location),
            )

    # -- inputs and outputs --------------------------------------------------------------------

    def _fetch(
        self, transforms: TransformRunner, call: Call
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        if not transforms.has_inputs(call):
            return call.args, call.kwargs
        self.control.enter(JobStatus.FETCHING_INPUT)
        return transforms.fetch(call)

    def _push(self, transforms: TransformRunner, call: Call, value: Any) -> Any:
        self.control.enter(JobStatus.PUSHING_OUTPUT)
        if not self._sink.confirm(_CONFIRM_TIMEOUT_S):
            raise self.control.superseded()
        if isinstance(value, Unpicklable):
            raise JobFailed(
                f"The task's return value cannot be passed to its result hooks: {value.reason}. "
                f"Return a path or plain values, or {THREAD_REMEDY}.",
                job_id=self.spec.id,
            )
        return transforms.push(call, value, self._resources.current_directory(self.control))

    def _pack(self, value: Any) -> PackedResult:
        return pack_result(value, max_bytes=self.worker.max_result, secrets=self._sink.secrets)
