"""Execution of a task's function: in the thread of the run, or in a process of its own."""

from __future__ import annotations

import contextlib
import functools
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from girder_dask.celery.runner import run_message
from girder_dask.celery.worker_app import find_task
from girder_dask.errors import TaskNotFoundError
from girder_dask.protocol.celery_message import CeleryMessage
from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.payload import Call
from girder_dask.tasks.completion import completed
from girder_dask.tasks.running_job import RunningJob
from girder_dask.worker.capture import output_capture
from girder_dask.worker.failures import describe_error
from girder_dask.worker.interruption.soft_time_limit import soft_time_limit
from girder_dask.worker.isolation.process_spec import ProcessSpec
from girder_dask.worker.isolation.task_process import TaskProcess
from girder_dask.worker.propagation.fork_exit import ending_forks
from girder_dask.worker.run.control import RunControl
from girder_dask.worker.worker_context import WorkerContext

__all__ = ["guard_forks", "in_process", "in_thread", "message_call", "with_task_options"]


def guard_forks(control: RunControl) -> contextlib.AbstractContextManager[None]:
    """End each process forked in the block when it leaves the block."""
    return ending_forks(control.sink.log.flush, describe_error, callable)


def with_task_options(spec: JobSpec, message: CeleryMessage, *, own_process: bool) -> JobSpec:
    """Return a spec with the options that a task of girder_worker has where it runs.

    Girder has not imported each task, and then does not know them: whether the task acknowledges
    late, and its time limit. Celery's workers apply their own, too.

    Parameters
    ----------
    own_process
        Whether the task runs in a process of its own, which may import what this one cannot.

    Raises
    ------
    TaskNotFoundError
        If it does not, and the task is not installed here.
    """
    try:
        task = find_task(message.task, spec.package)
    except TaskNotFoundError:
        if own_process:
            return spec
        raise
    limit = task.time_limit
    timeout = spec.timeout or (float(limit) if limit else None)
    return replace(spec, at_most_once=not task.acks_late, timeout=timeout)


def message_call(message: CeleryMessage, spec: JobSpec, own_directory: Path | None) -> Call:
    """Return a call that runs a message of Celery.

    Parameters
    ----------
    own_directory
        The directory for temporary files of a process of its own. None in that of the worker.
    """
    return Call(
        args=(message, spec.package),
        kwargs={
            "note": spec.retry_note,
            "trusted": spec.trusted,
            "soft_time_limit": soft_time_limit,
            "temporary_directory": None if own_directory is None else str(own_directory),
        },
        function=run_message,
    )


def in_thread(
    function: Callable[..., Any], control: RunControl, worker: WorkerContext
) -> Callable[..., Any]:
    """Return a callable that runs a function in this thread, within its time limit."""
    output_capture.keep_import_time_state(control.sink.log)
    set_limit = functools.partial(worker.limit, control)

    def call_function(*args: Any, **kwargs: Any) -> Any:
        time_limit = control.interruption.time_limit(
            set_limit, control.spec.timeout, control.spec.id
        )
        with time_limit, guard_forks(control), output_capture.flushing_at_end():
            value = completed(function, *args, **kwargs)
            _write_unfinished(control)
            return value

    return call_function


def _write_unfinished(control: RunControl) -> None:
    leftovers = control.interruption.leftovers()
    if leftovers is not None:
        control.write(
            f"The task returned while what it had started was still running: {leftovers:.500}. The "
            "job does not wait for it, and its output from now on may be lost. Wait for it before "
            "returning: join() threads, shut pools down, wait() for processes.\n"
        )


def in_process(
    call: Call, job: RunningJob, control: RunControl, worker: WorkerContext, work_dir: Path
) -> Callable[..., Any]:
    """Start a process for a task, and return a callable that runs the function there.

    The process loads the function and waits for its arguments.
    """
    import cloudpickle

    spec = ProcessSpec(
        job=replace(control.spec, payload=b""),
        location=worker.location,
        work_dir=work_dir,
        function=None if call.function is None else cloudpickle.dumps(call.function),
        api_url=job.request.girder_api_url,
        gpus=job.request.gpus,
        log_level=worker.log_level,
        scheduler=pickle.dumps(worker.scheduler) if worker.scheduler else None,
        path=tuple(sys.path),
        session=call.session,
        container_scope=job.container_scope,
    )
    process = TaskProcess(
        spec,
        worker.fork_server_supervisor,
        log=control.sink.log,
        manager=control.manager,
        directory=worker.directory,
        grace_s=worker.grace_s,
    )
    control.process = process
    process.load()

    def call_function(*args: Any, **kwargs: Any) -> Any:
        return process.call(args, kwargs, control.spec.timeout)

    return call_function
