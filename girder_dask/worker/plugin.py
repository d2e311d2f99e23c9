"""The plugin of Dask workers, which runs jobs, reports on them and stops them.

The scheduler sends it to every worker that joins.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
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
from girder_dask.docker.engine_check import describe_engine
from girder_dask.docker.leftovers import remove_of_dead_workers
from girder_dask.errors import GirderDaskError
from girder_dask.protocol import json_log
from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.names import ATTEMPT_ANNOTATION, GPU_RESOURCE, PLUGIN_NAME
from girder_dask.protocol.wire_version import WIRE_VERSION, version_conflict
from girder_dask.tls import EXPIRY_METRIC, ExpiryMetric, keep_certificate
from girder_dask.utils.background import Guard, log_failure
from girder_dask.worker import gpus
from girder_dask.worker.cancellation import RunCanceller
from girder_dask.worker.isolation.fork_server_supervisor import ForkServerSupervisor
from girder_dask.worker.location import WorkerLocation
from girder_dask.worker.outbox import Outbox
from girder_dask.worker.process_setup import (
    open_file_cache,
    remove_credential,
    start_capture,
    stop_capture,
    unsafe_directory,
)
from girder_dask.worker.run.control import RunControl
from girder_dask.worker.run.fencing import StartAnswer
from girder_dask.worker.run.runner import Run
from girder_dask.worker.termination import AlarmSignals, TerminationSignals
from girder_dask.worker.worker_context import WorkerContext

__all__ = ["GirderWorkerPlugin", "run_job"]

logger = logging.getLogger(__name__)

# Together less than the eight seconds that a nanny gives its worker to end.
_LEAVE_TIMEOUT_S, _STOP_TIMEOUT_S, _CLOSE_TIMEOUT_S = 0.5, 2.0, 4.0
# The states of a worker that starts tasks, now or later, and of tasks that it may still start.
_STARTING_STATES = (Status.running, Status.paused)
_UNSTARTED_STATES = ("waiting", "ready", "constrained")
# How long to wait for the scheduler's message that a worker leaves.
_MESSAGE_TIMEOUT_S, _POLL_INTERVAL_S = 2.0, 0.01
_RESTART_EXIT_CODE = 1
_UNSAFE_REASON = "girder-dask-unsafe-directory"
_INCOMPATIBLE_REASON = "girder-dask-incompatible-version"


def run_job(spec: JobSpec, values: Mapping[str, Any] | None = None) -> Any:
    """Run a job on this worker. Dask calls this function as the task of the job.

    Parameters
    ----------
    spec
        The job, its call and its attempt.
    values
        Results of other jobs among its arguments, by job id. Results that Dask no longer has are
        fetched from Girder.
    """
    worker = get_worker()
    plugin = worker.plugins.get(PLUGIN_NAME)
    if not isinstance(plugin, GirderWorkerPlugin):
        raise GirderDaskError(
            f"Worker {worker.address} has no girder_dask plugin, so job {spec.id} cannot run "
            "there. Start the scheduler with --preload girder_dask.scheduler_hooks."
        )
    if plugin.context is None:
        raise Reschedule(f"Worker {worker.address} is closing; job {spec.id} runs elsewhere.")
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
        # Another run has the job, or the worker is closing: Dask decides where the task goes.
        raise Reschedule from e


def _is_leaving(worker: Worker) -> bool:
    """Return True if a worker is closing. Wait: a signal to its group may reach a task first."""
    deadline = time.monotonic() + _MESSAGE_TIMEOUT_S
    while worker.status in _STARTING_STATES:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_INTERVAL_S)
    return True


def _attempt(worker: Worker, spec: JobSpec) -> int:
    """Return the number of the attempt. After the loss of a worker, Dask reruns the same spec."""
    task = worker.state.tasks.get(spec.key)
    annotations = (task.annotations if task is not None else None) or {}
    return int(annotations.get(ATTEMPT_ANNOTATION, spec.attempt))


class GirderWorkerPlugin(WorkerPlugin):
    """Plugin that prepares a worker for jobs, sends their events and stops canceled ones.

    Parameters
    ----------
    api_url
        Girder's REST API as the scheduler reaches it, for workers without a setting of their own.
    """

    name = PLUGIN_NAME
    # That of this process, if the scheduler has an earlier release and sends none.
    _scheduler_version = WIRE_VERSION

    def __init__(self, api_url: str | None = None) -> None:
        self._scheduler_api_url = api_url
        self._scheduler_version = WIRE_VERSION  # the scheduler makes the plugin
        self.context: WorkerContext | None = None
        self._restart: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[Any] | None = None
        self._removal: asyncio.Task[Any] | None = None
        self._certificate: asyncio.Task[None] | None = None

    async def setup(self, worker: Worker) -> None:
        """Prepare the worker for jobs; called on its event loop when it joins.

        The worker is closed if another user of the host can change its directory, or if it cannot
        read the messages of the scheduler.
        """
        unsafe = unsafe_directory(worker)
        if unsafe is not None:
            self._refuse(worker, unsafe, _UNSAFE_REASON)
            return
        conflict = version_conflict(self._scheduler_version, "on the scheduler", "on this worker")
        if conflict is not None:
            with contextlib.suppress(Exception):  # a scheduler of an earlier release
                await worker.scheduler.girder_refused_worker(version=WIRE_VERSION)
            self._refuse(worker, f"This worker ends: {conflict}.", _INCOMPATIBLE_REASON)
            return
        remove_credential()
        json_log.install_if_configured()
        start_capture()
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self.context = context = self._make_context(worker)
        self._canceller = RunCanceller(
            context.runs,
            context.refused,
            context.grace_s,
            config.seconds_or_none("worker.restart-stuck"),
            self._give_up,
        )
        context.limit = self._limit
        self._signals = TerminationSignals(self._asked_to_end, child=bool(worker.nanny))
        self._alarms = AlarmSignals()
        worker.handlers |= {
            "girder_cancel": self.cancel,
            "girder_drop": self.drop,
            "girder_flush": self.flush,
            "girder_not_begun": self.unstarted,
            "girder_facts": self.facts,
        }
        removal = asyncio.create_task(asyncio.to_thread(remove_of_dead_workers))
        self._removal = log_failure(removal, logger, "Removing containers of earlier workers")
        keeping = asyncio.create_task(keep_certificate(worker, "worker"))
        self._certificate = log_failure(keeping, logger, "Keeping the certificate")
        worker.metrics[EXPIRY_METRIC] = ExpiryMetric()
        if context.isolation == "process":
            context.fork_server_supervisor.start()
        logger.info("girder_dask %s is ready on %s", __version__, worker.address)

    def _refuse(self, worker: Worker, why: str, reason: str) -> None:
        """Close a worker. Dask keeps one whose plugin has failed, but no job may run on this."""
        logger.error("%s", why)
        closing = asyncio.create_task(worker.close(nanny=True, reason=reason))
        self._closing = log_failure(closing, logger, f"Closing the worker {worker.address}")

    def _make_context(self, worker: Worker) -> WorkerContext:
        outbox = Outbox(
            self._send,
            interval_s=config.seconds("worker.flush-interval"),
            log_capacity=config.nbytes("worker.log-buffer"),
            worker=worker.address,
            max_log=config.nbytes("max-log"),
            room=self._room,
            on_dropped=self._drop,
        )
        cache, cache_error = open_file_cache()
        total = worker.state.total_resources.get(GPU_RESOURCE, 0)
        return WorkerContext(
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
            grace_s=config.seconds("worker.cancel-grace"),
            log_level=config.get("worker.log-level"),
            dask_client=worker._get_client,  # noqa: SLF001 - get_client() needs its own thread
            scheduler=(worker.scheduler.address, worker.security),
            may_start=self._may_start,
        )

    async def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - Dask's signature
        """Stop the runs, send the waiting events, and stop the capture."""
        if self.context is None:
            return
        context, self.context = self.context, None
        if self._certificate is not None:
            self._certificate.cancel()
        self._signals.close()
        self._alarms.close()
        if context.runs:
            await self._leave(
                stuck=[run.spec.id for run in context.runs.values()], timeout_s=_LEAVE_TIMEOUT_S
            )
            await self._canceller.close(_STOP_TIMEOUT_S)
        await asyncio.gather(
            context.outbox.close(_CLOSE_TIMEOUT_S),
            asyncio.to_thread(context.fork_server_supervisor.close),
        )
        stop_capture()

    # -- the end ------------------------------------------------------------------------------

    async def _asked_to_end(self) -> None:
        """Leave the cluster, then close the worker."""
        await self._leave()
        await self._worker.close(nanny=False, reason="girder-dask-leave")

    async def _leave(
        self, stuck: Sequence[str] = (), *, remove: bool = True, timeout_s: float | None = None
    ) -> None:
        """Have the scheduler send no more tasks, and wait for the runs as long as it allows.

        Parameters
        ----------
        stuck
            The jobs whose runs cannot be stopped.
        remove
            Whether the scheduler removes the worker.
        timeout_s
            Seconds to wait.
        """
        address = self._worker.address
        try:
            leave = self._worker.scheduler.girder_leave(
                worker=address, stuck=list(stuck), remove=remove
            )
            async with asyncio.timeout(timeout_s):
                await leave
        except Exception as e:  # noqa: BLE001 - no error may keep the worker from its end
            logger.warning("Worker %s is closing but cannot tell the scheduler: %r", address, e)

    def _limit(self, run: RunControl, seconds: float | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker ends
            # In no job's context, so that log records are the worker's.
            self._loop.call_soon_threadsafe(self._canceller.limit, run, seconds, context=Context())

    def _give_up(self, run: RunControl) -> None:
        if self._restart is None:
            restart = asyncio.get_running_loop().create_task(self._restarted(run))
            self._restart = log_failure(restart, logger, "Ending this worker")

    async def _restarted(self, run: RunControl) -> None:
        """End the process because a run cannot be stopped. A nanny starts another one."""
        worker = self._worker
        guard = Guard(logger, "Ending this worker")  # the process ends even if a step fails
        logger.warning("A run of job %s cannot be stopped; the worker is closing", run.spec.id)
        with guard:
            run.write(f"Worker {worker.address} is restarted because the job does not stop.\n")
        # The scheduler keeps the worker until its process ends: the job runs until then.
        await self._leave([run.spec.id], remove=False)
        with guard:
            run.give_up()
        if worker.nanny and self.context is not None:
            # The scheduler learns of it from the end of the process, when nothing runs any more.
            with guard:
                await self.context.outbox.close(_CLOSE_TIMEOUT_S)
            for each in list(self.context.runs.values()):
                with guard:
                    each.kill_processes()
            os._exit(_RESTART_EXIT_CODE)
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
        """Cancel the runs of these keys. They are interrupted when their grace period is over.

        Returns
        -------
        list of str
            The keys that this worker has not started and will not start.
        """
        without_run = self._canceller.cancel(keys)
        tasks = (self._worker.state.tasks.get(key) for key in without_run)
        if not all(task is not None and task.state in _UNSTARTED_STATES for task in tasks):
            await self.flush()  # the end of a run may not be acknowledged yet
        return sorted(without_run)

    async def drop(self, runs: list[str]) -> None:
        """Stop runs that the scheduler ignores because other runs have their jobs."""
        self._drop(runs)

    def _drop(self, runs: Collection[str]) -> None:
        self._canceller.drop(runs)

    async def flush(self) -> None:
        """Wait until the scheduler has acknowledged all events that wait now."""
        if self.context is not None:
            await self.context.outbox.flushed()

    async def unstarted(self) -> list[str]:
        """Return the keys that this leaving worker has not started and will not start.

        Dask's message that it leaves comes after all tasks that the scheduler has sent.
        """
        worker, loop = self._worker, asyncio.get_running_loop()
        deadline = loop.time() + _MESSAGE_TIMEOUT_S
        while worker.status in _STARTING_STATES:
            if loop.time() > deadline:
                return []
            await asyncio.sleep(_POLL_INTERVAL_S)
        tasks = worker.state.tasks.values()
        return [str(task.key) for task in tasks if task.state in _UNSTARTED_STATES]

    async def facts(self, api_url: str | None = None) -> Mapping[str, Any]:
        """Return the facts that ``girder-dask doctor`` shows about a worker.

        ``api_url`` is Girder's own address, for a worker that has no other.
        """
        from girder_dask.diagnostics import describe_process, disk_space, listening_addresses

        own = self.context.api_url if self.context is not None else None
        error = self.context.cache_error if self.context is not None else None
        facts = await asyncio.to_thread(describe_process, own or self._scheduler_api_url or api_url)
        return {
            **facts,
            "cache_error": error,
            "disks": disk_space(self._worker.local_directory),
            "containers": await asyncio.to_thread(describe_engine),
            "http_addresses": listening_addresses(self._worker.http_server),
        }
