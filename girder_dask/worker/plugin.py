"""What girder_dask does in a worker. The scheduler sends it to every worker that joins."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextvars import Context
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Reschedule, Status, Worker, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from girder_dask import config
from girder_dask._version import __version__
from girder_dask.errors import GirderDaskError
from girder_dask.files.cache import CacheUnusable, FileCache, open_cache
from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.names import ATTEMPT_ANNOTATION, PLUGIN_NAME
from girder_dask.utils import working_directory
from girder_dask.utils.background import Guard, log_failure
from girder_dask.utils.private_directory import require_unchangeable
from girder_dask.worker import gpus
from girder_dask.worker.cancellation import RunCanceller
from girder_dask.worker.capture import output_capture
from girder_dask.worker.concurrency import propagation
from girder_dask.worker.context import WorkerContext
from girder_dask.worker.isolation.fork_server_supervisor import ForkServerSupervisor
from girder_dask.worker.location import WorkerLocation
from girder_dask.worker.outbox import Outbox
from girder_dask.worker.process_globals import job_scope
from girder_dask.worker.run.control import RunControl
from girder_dask.worker.run.fencing import StartAnswer
from girder_dask.worker.run.runner import Run
from girder_dask.worker.termination import AlarmSignals, TerminationSignals

__all__ = ["GirderWorkerPlugin", "run_job"]

logger = logging.getLogger(__name__)

# Together they must be less than the eight seconds that nannies give a worker.
_LEAVING, _STOPPING_TIME, _CLOSING_TIME = 0.5, 2.0, 4.0
# The states of a worker that may begin with tasks, now or later, and of tasks that may be begun.
_BEGINNING = (Status.running, Status.paused)
_NOT_BEGUN = ("waiting", "ready", "constrained")
# How long the scheduler's message that a worker leaves may take, and how often it is looked.
_MESSAGE_TIME, _PAUSE = 2.0, 0.01
# With what a process ends that is to be restarted.
_RESTART = 1
_UNSAFE = "girder-dask-unsafe-directory"

# Several workers may live in one process; the capture is the process's.
_capture_lock = threading.Lock()
_capture_users = 0


def run_job(spec: JobSpec, values: Mapping[str, Any] | None = None) -> Any:
    """Run a job on this worker. This is the function that Dask is given.

    Parameters
    ----------
    spec
        What to run.
    values
        The values of jobs that are among its arguments, by their ids, as far as Dask has
        them. The others are asked of Girder.
    """
    worker = get_worker()
    plugin = worker.plugins.get(PLUGIN_NAME)
    if not isinstance(plugin, GirderWorkerPlugin):
        raise GirderDaskError(
            f"Worker {worker.address} has no girder_dask plugin, so job {spec.id} cannot run "
            "there. Start the scheduler with --preload girder_dask.scheduler_hooks."
        )
    if plugin.context is None:
        raise Reschedule(f"Worker {worker.address} ends; job {spec.id} runs elsewhere.")
    attempt = _attempt(worker, spec)
    if not attempt:
        raise GirderDaskError(
            f"Job {spec.id} has ended, or its next attempt has another key than {spec.key}. "
            "See its log."
        )
    leaving = partial(_is_leaving, worker)
    run = Run(spec, plugin.context, values, attempt=attempt, is_leaving=leaving)
    try:
        return run()
    except Exception as e:
        if run.control.reports_end:
            raise
        # It was stopped since it is another's, or since the worker ends: Dask knows where it goes.
        raise Reschedule from e


def _is_leaving(worker: Worker) -> bool:
    """Say whether a worker ends. A task may hear of that first, as of a signal to a whole group."""
    deadline = time.monotonic() + _MESSAGE_TIME
    while worker.status in _BEGINNING:
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True


def _attempt(worker: Worker, spec: JobSpec) -> int:
    """Return which attempt this is; one whose worker was lost runs again with the same spec."""
    task = worker.state.tasks.get(spec.key)
    annotations = (task.annotations if task is not None else None) or {}
    return int(annotations.get(ATTEMPT_ANNOTATION, spec.attempt))


class GirderWorkerPlugin(WorkerPlugin):
    """Captures output, sends job events to the scheduler and stops canceled jobs.

    Parameters
    ----------
    api_url
        Girder's REST API as the scheduler reaches it, for workers that have no setting.
    """

    name = PLUGIN_NAME

    def __init__(self, api_url: str | None = None) -> None:
        self._scheduler_api_url = api_url
        self.context: WorkerContext | None = None
        self._restart: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[Any] | None = None

    async def setup(self, worker: Worker) -> None:
        """Start to capture; called on the worker's event loop when it joins.

        A worker whose directory another user of the host could change ends instead.
        """
        unsafe = _unsafe_directory(worker)
        if unsafe is not None:
            logger.error("%s", unsafe)
            # Dask goes on with a worker whose plugin has failed. Nothing is to run on this one.
            closing = asyncio.create_task(worker.close(nanny=True, reason=_UNSAFE))
            self._closing = log_failure(closing, logger, f"Closing the worker {worker.address}")
            return
        _forget_credential()
        _start_capture()
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        outbox = Outbox(
            self._send,
            interval=config.seconds("worker.flush-interval"),
            log_capacity=config.nbytes("worker.log-buffer"),
            worker=worker.address,
            max_log=config.nbytes("max-log"),
            room=self._room,
            on_dropped=self._drop,
        )
        cache, cache_error = _open_cache()
        total = worker.state.total_resources.get(gpus.RESOURCE, 0)
        self.context = WorkerContext(
            location=WorkerLocation(worker.address, socket.gethostname()),
            outbox=outbox,
            directory=Path(worker.local_directory),
            api_url=config.get("api-url") or os.environ.get("GIRDER_WORKER_API_URL"),
            max_result=config.nbytes("worker.max-result"),
            scheduler_api_url=self._scheduler_api_url,
            cache=cache,
            cache_error=cache_error,
            gpus=gpus.GpuAllocator(gpus.visible_ids(total) if total else ()),
            fork_server_supervisor=ForkServerSupervisor(config.names("worker.preimport")),
            isolation=config.choice("worker.isolation", ("thread", "process")),
            grace=config.seconds("worker.cancel-grace"),
            log_level=config.get("worker.log-level"),
            dask_client=worker._get_client,  # noqa: SLF001 - get_client() needs its own thread
            scheduler=(worker.scheduler.address, worker.security),
            may_start=self._may_start,
        )
        self._canceller = RunCanceller(
            self.context.runs,
            self.context.refused,
            self.context.grace,
            config.seconds_or_none("worker.restart-stuck"),
            self._give_up,
        )
        self.context.limit = self._limit
        self._signals = TerminationSignals(self._asked_to_end, child=bool(worker.nanny))
        self._alarms = AlarmSignals()
        worker.handlers |= {
            "girder_cancel": self.cancel,
            "girder_drop": self.drop,
            "girder_flush": self.flush,
            "girder_not_begun": self.not_begun,
            "girder_facts": self.facts,
        }
        if self.context.isolation == "process":
            self.context.fork_server_supervisor.begin()
        logger.info("girder_dask %s is ready on %s", __version__, worker.address)

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - Dask's signature
        """Stop what runs, send what waits, and stop to capture."""
        if self.context is None:
            return
        context, self.context = self.context, None
        self._signals.close()
        self._alarms.close()
        if context.runs:
            await self._leave(stuck=[run.spec.id for run in context.runs.values()], limit=_LEAVING)
            await self._canceller.close(_STOPPING_TIME)
        await asyncio.gather(
            context.outbox.close(_CLOSING_TIME),
            asyncio.to_thread(context.fork_server_supervisor.close),
        )
        _stop_capture()

    # -- the end ------------------------------------------------------------------------------

    async def _asked_to_end(self) -> None:
        """End the worker in good order."""
        await self._leave()
        await self._worker.close(nanny=False, reason="girder-dask-leave")

    async def _leave(
        self, stuck: Sequence[str] = (), *, remove: bool = True, limit: float | None = None
    ) -> None:
        """Have the scheduler send nothing more, and give what runs here its time."""
        address = self._worker.address
        try:
            leave = self._worker.scheduler.girder_leave(
                worker=address, stuck=list(stuck), remove=remove
            )
            await asyncio.wait_for(leave, limit)
        except Exception as e:  # noqa: BLE001 - whatever it is, the worker is to end
            logger.warning("Worker %s ends and cannot tell the scheduler: %r", address, e)

    def _limit(self, run: RunControl, seconds: float | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the worker ends
            # In no job's context: what is logged there is the worker's.
            self._loop.call_soon_threadsafe(self._canceller.limit, run, seconds, context=Context())

    def _give_up(self, run: RunControl) -> None:
        if self._restart is None:
            restart = asyncio.get_running_loop().create_task(self._restarted(run))
            self._restart = log_failure(restart, logger, "Ending this worker")

    async def _restarted(self, run: RunControl) -> None:
        """End the process because of a run that cannot be stopped; a nanny starts another."""
        worker = self._worker
        guard = Guard(logger, "Ending this worker")  # which does end, whatever fails
        logger.warning("A run of job %s cannot be stopped; the worker ends", run.spec.id)
        with guard:
            run.write(f"Worker {worker.address} is restarted, as the job does not stop.\n")
        # Until the process ends it is the scheduler's, so that nobody takes the job for ended.
        await self._leave([run.spec.id], remove=False)
        with guard:
            run.give_up()
        if worker.nanny and self.context is not None:
            # The scheduler learns of it by the end of the process, when nothing runs any more.
            with guard:
                await self.context.outbox.close(_CLOSING_TIME)
            for each in list(self.context.runs.values()):
                with guard:
                    each.kill_processes()
            os._exit(_RESTART)
        await worker.close(nanny=False, executor_wait=False, reason="girder-dask-restart-stuck")

    # -- the scheduler ------------------------------------------------------------------------

    async def _send(self, outbox: str, batch: int, events: list[dict[str, Any]]) -> Collection[str]:
        answer = await self._worker.scheduler.girder_events(
            outbox=outbox, batch=batch, events=events
        )
        return set(answer["dropped"])

    def _may_start(self, key: str, attempt: int) -> StartAnswer:
        asked = self._worker.scheduler.girder_may_begin(key=key, attempt=attempt)
        return asyncio.run_coroutine_threadsafe(asked, self._loop)

    async def _room(self, job_id: str) -> bool:
        return bool(await self._worker.scheduler.girder_room(job=job_id))

    # -- remote procedures --------------------------------------------------------------------

    async def cancel(self, keys: list[str]) -> list[str]:
        """Stop the runs of keys: tell them, and interrupt them when their grace is over.

        Return the keys with which this worker has not begun, and will not.
        """
        without_run = self._canceller.cancel(keys)
        tasks = (self._worker.state.tasks.get(key) for key in without_run)
        if not all(task is not None and task.state in _NOT_BEGUN for task in tasks):
            await self.flush()  # a run may have ended, and the scheduler not have heard of it
        return sorted(without_run)

    async def drop(self, runs: list[str]) -> None:
        """Stop runs that the scheduler does not listen to any more."""
        self._drop(runs)

    def _drop(self, runs: Collection[str]) -> None:
        self._canceller.drop(runs)

    async def flush(self) -> None:
        """Return when the scheduler has what was said until now."""
        if self.context is not None:
            await self.context.outbox.flushed()

    async def not_begun(self) -> list[str]:
        """Return the keys with which this worker has not begun, and will not, as it leaves.

        It leaves when the scheduler's message has arrived, and with it all tasks before it.
        """
        worker, loop = self._worker, asyncio.get_running_loop()
        deadline = loop.time() + _MESSAGE_TIME
        while worker.status in _BEGINNING:
            if loop.time() > deadline:
                return []
            await asyncio.sleep(_PAUSE)
        tasks = worker.state.tasks.values()
        return [str(task.key) for task in tasks if task.state in _NOT_BEGUN]

    async def facts(self, api_url: str | None = None) -> Mapping[str, Any]:
        """Return what ``girder-dask doctor`` asks of a worker.

        ``api_url`` is what Girder says of itself, for a worker that is told nothing else.
        """

        from girder_dask.diagnostics import describe_process

        own = self.context.api_url if self.context is not None else None
        error = self.context.cache_error if self.context is not None else None
        facts = await asyncio.to_thread(describe_process, own or self._scheduler_api_url or api_url)
        return {**facts, "cache_error": error}


def _unsafe_directory(worker: Worker) -> str | None:
    """Return why others could change what jobs, or Dask itself, keep in a worker's directory."""
    try:
        require_unchangeable(Path(worker.local_directory))
    except OSError as e:
        return (
            f"Worker {worker.address} ends, as its directory is not safe: {e}. Start it with a "
            "--local-directory that its own user alone may change."
        )
    return None


def _open_cache() -> tuple[FileCache | None, str | None]:
    """Return the cache of input files, or why there is none although one is asked for."""
    try:
        return open_cache(), None
    except CacheUnusable as e:
        logger.warning("%s", e)
        return None, str(e)


def _forget_credential() -> None:
    """Take the scheduler's API key from the tasks, and from what Dask tells of this worker."""
    from distributed import Scheduler

    if len(Scheduler._instances) or not config.forget_credential():  # noqa: SLF001
        return
    logger.warning(
        "The scheduler's API key (girder.credential) is in the configuration of this worker, where "
        "tasks can read it. It was taken out. Only the scheduler needs it: set it there alone."
    )


def _warn_without_directories() -> None:
    why = working_directory.unsupported_reason()
    if why is not None:
        logger.warning(
            "This system gives threads no working directory of their own (%s), so jobs share that "
            "of the worker, which is put back after each. Allow unshare(CLONE_FS) in the seccomp "
            "profile of its container, or set girder.worker.isolation to process.",
            why,
        )


def _start_capture() -> None:
    global _capture_users
    with _capture_lock:
        _capture_users += 1
        if _capture_users == 1:
            output_capture.install(log_level=config.get("worker.log-level"))
            propagation.install()
            job_scope.install()
            _warn_without_directories()


def _stop_capture() -> None:
    global _capture_users
    with _capture_lock:
        _capture_users -= 1
        if _capture_users == 0:
            job_scope.uninstall()
            propagation.uninstall()
            output_capture.uninstall()
