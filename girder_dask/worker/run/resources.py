"""The resources of one run, and their release when it ends."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TypeVar

from girder_dask.docker import leftovers
from girder_dask.protocol.error_text import summary
from girder_dask.protocol.messages import JobSpec
from girder_dask.tasks.container_scope import ContainerScope
from girder_dask.utils import process_identity
from girder_dask.worker.process_globals.job_scope import JobScope
from girder_dask.worker.run.control import RunControl
from girder_dask.worker.run.transform_runner import TransformRunner
from girder_dask.worker.run.workspace import Workspace
from girder_dask.worker.run_sink import RunSink

__all__ = ["RunResources"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class RunResources:
    """The resources of a run, from its start to its end.

    Parameters
    ----------
    spec
        The job that the run executes.
    directory
        The directory of the worker, in which those of the run are created.
    sink
        The sink of the run.

    Attributes
    ----------
    work_dir
        The working directory of the task.
    inputs
        The directory of fetched inputs.
    scope
        The globals of the process that are separate for the run.
    container_scope
        What the containers of the run may use.
    transforms
        The transforms of the run, once there are any.
    """

    def __init__(self, spec: JobSpec, directory: Path, sink: RunSink) -> None:
        self.work_dir = Workspace(directory, f"job-{spec.id}-")
        inputs_prefix = f"job-{spec.id}-inputs-"
        self.inputs = Workspace(directory, inputs_prefix)
        self.container_scope = ContainerScope(
            job_id=spec.id,
            attempt=spec.attempt,
            owner=process_identity.identity(),
            trusted=spec.trusted,
            inputs=str(directory.absolute() / inputs_prefix),
            resources=spec.resources or {},
        )
        self.scope = JobScope(self.work_dir.path, sink.write)
        self.transforms: TransformRunner | None = None
        self._sink = sink
        self._stack = contextlib.ExitStack()

    def enter(self, resource: contextlib.AbstractContextManager[T]) -> T:
        """Enter a context manager until the end of the run."""
        return self._stack.enter_context(resource)

    def current_directory(self, control: RunControl) -> str | None:
        """Return the working directory in which the function returned, None if it is gone."""
        process = control.process
        if process is not None and process.cwd is not None:
            self.scope.follow(process.cwd)
            return process.cwd
        with contextlib.suppress(OSError):
            return str(Path.cwd())
        return None

    def release(self, control: RunControl, grace_s: float) -> None:
        """Release everything in reverse order, even if a step fails.

        The process of the task ends first, then any threads and processes that a stopped task has
        left behind. Then transforms clean up, and the directories are removed.

        Parameters
        ----------
        grace_s
            Seconds between SIGTERM and SIGKILL for remaining processes.
        """
        try:
            with self._stack as ending:
                ending.callback(self.work_dir.remove)
                ending.callback(self.inputs.remove)
                ending.callback(self.scope.end)
                if self.transforms is not None:
                    ending.callback(self.transforms.clean_up, control.write)
                if self._sink.images:
                    ending.callback(leftovers.remove_of_run, self.container_scope)
                if control.is_stopped:
                    ending.callback(_end_processes, control, grace_s)
                    ending.callback(_end_threads, control)
                else:
                    ending.callback(control.interruption.release)
                if control.process is not None:
                    ending.callback(control.process.close)
        except BaseException as e:
            logger.exception("Cleaning up after job %s failed", control.spec.id)
            control.write(f"Cleaning up after the job failed: {summary(e)}\n")


def _end_threads(control: RunControl) -> None:
    """Wait for threads that the task has left behind. RunCanceller interrupts them meanwhile."""
    while not control.interruption.end_threads():
        pass


def _end_processes(control: RunControl, grace_s: float) -> None:
    if not control.processes.end(grace_s):
        pids = ", ".join(str(process.pid) for process in control.processes.running())
        control.write(f"Processes of the job have been killed, but have not ended: {pids}.\n")
