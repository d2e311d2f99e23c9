"""The scheduler plugin of girder_dask.

The plugin is thin. It passes Dask's transitions, the workers' events and what is submitted
to a :class:`~girder_dask.scheduler.dispatcher.Dispatcher`, which keeps the jobs, and a
:class:`~girder_dask.scheduler.recorder.Recorder`, which tells Girder. Nothing here waits on the
scheduler's event loop: requests to Girder are made in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import NannyPlugin, SchedulerPlugin, WorkerPlugin

from girder_dask import config
from girder_dask._version import __version__
from girder_dask.errors import GirderError
from girder_dask.http.scheduler_api import SchedulerApi
from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.names import PLUGIN_NAME
from girder_dask.scheduler.dask_cluster import DaskCluster
from girder_dask.scheduler.dask_reconciler import DaskReconciler
from girder_dask.scheduler.dispatcher import Dispatcher
from girder_dask.scheduler.girder_reconciler import GirderReconciler
from girder_dask.scheduler.job_state import Backoff
from girder_dask.scheduler.recorder import Recorder
from girder_dask.scheduler.retirement import WorkerRetirement
from girder_dask.scheduler.rpc import RpcHandlers
from girder_dask.scheduler.run_reports import RunReports
from girder_dask.scheduler.stealing import JobStealing
from girder_dask.utils.background import Guard, log_failure

__all__ = ["PLUGIN_NAME", "GirderSchedulerPlugin", "WorkerSide"]

logger = logging.getLogger(__name__)

_CLOSING_TIME = 10.0
_CLAIM_LIMIT = 500
# How often Girder is asked for jobs that this scheduler lacks between two turns of the audit.
_PULLS_PER_AUDIT = 6


@dataclass(frozen=True)
class WorkerSide:
    """What the scheduler sends to workers, and runs there.

    Parameters
    ----------
    run_job
        The function of every Dask task of ours.
    make_plugin
        Makes the plugin of workers, given Girder's REST API.
    make_nanny_plugin
        Makes the plugin of nannies.
    """

    run_job: Callable[..., Any]
    make_plugin: Callable[[str | None], WorkerPlugin]
    make_nanny_plugin: Callable[[], NannyPlugin]


class GirderSchedulerPlugin(SchedulerPlugin):
    """Runs the jobs of one Girder.

    Parameters
    ----------
    workers
        What it sends to workers.
    api_url, credential
        Girder's REST API and the scheduler's API key, by default those of Dask's
        configuration (``girder.api-url``, ``girder.credential``).
    """

    name = PLUGIN_NAME

    def __init__(
        self, workers: WorkerSide, api_url: str | None = None, credential: str | None = None
    ) -> None:
        self._workers = workers
        self.id = uuid.uuid4().hex
        self._api_url = api_url or config.get("api-url")
        self._credential = credential or config.credential()
        self._tasks: list[asyncio.Task[None]] = []
        self._unknown = asyncio.Event()

    async def start(self, scheduler: Scheduler) -> None:
        """Install the handlers and begin to work; called when the scheduler listens."""
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._cluster = DaskCluster(scheduler, self._loop, self._workers.run_job, self._forgotten)
        self.recorder = Recorder(
            self._post,
            self._verdict,
            self._heard,
            interval=config.seconds("scheduler.flush-interval"),
            batch_size=int(config.get("scheduler.batch-size")),
            buffer=config.nbytes("scheduler.buffer"),
            retry_delay=config.seconds("scheduler.retry-delay"),
            retry_delay_max=config.seconds("scheduler.retry-delay-max"),
        )
        self.dispatcher = Dispatcher(
            self._cluster,
            self.recorder.record,
            self.recorder.forget,
            self._unknown.set,
            backoff=Backoff(
                config.seconds("scheduler.retry-backoff"),
                config.seconds("scheduler.retry-backoff-max"),
            ),
            keep_seconds=config.seconds("scheduler.keep-values"),
            keep_bytes=config.nbytes("scheduler.keep-values-bytes"),
        )
        self.dispatcher.pending.timeout = config.seconds_or_none("scheduler.no-worker-timeout")
        self._accounts = RunReports(
            self.dispatcher.is_open,
            scheduler.workers.__contains__,
            lambda: self.recorder.is_full,
        )
        self._missing = DaskReconciler(
            self.dispatcher.jobs, self._cluster.has, self.dispatcher.dependencies.start
        )
        self._audit_interval = _PULLS_PER_AUDIT * config.seconds("scheduler.pull-interval")
        self._audit = GirderReconciler(self.dispatcher.has, interval=self._audit_interval)
        grace = config.seconds("scheduler.leave-grace")
        self.leaving = WorkerRetirement(scheduler, self.dispatcher, self._cluster, grace)
        # Each connection is used by one thread, so each has one.
        self._threads = {
            name: ThreadPoolExecutor(1, thread_name_prefix=f"girder-dask-{name}")
            for name in ("updates", "claims")
        }
        self._apis = {name: self._api() for name in self._threads}
        self.rpc = RpcHandlers(
            self.id,
            self.dispatcher,
            self.recorder,
            self._cluster,
            self._api_url,
            partial(self._ask_girder, "check_credential"),
        )
        scheduler.handlers |= {**self.leaving.handlers, **self.rpc.handlers}
        await scheduler.register_worker_plugin(
            comm=None,
            plugin=pickle.dumps(self._workers.make_plugin(self._api_url)),
            name=PLUGIN_NAME,
            idempotent=False,
        )
        await scheduler.register_nanny_plugin(
            comm=None,
            plugin=pickle.dumps(self._workers.make_nanny_plugin()),
            name=PLUGIN_NAME,
            idempotent=False,
        )
        placement = JobStealing(scheduler, self.dispatcher.is_queued)
        self._tasks = [
            self._loop.create_task(placement.run(), name="girder-dask placement"),
            self._loop.create_task(self._look_for_missing(), name="girder-dask missing"),
            self._loop.create_task(self._cluster.connect(), name="girder-dask client"),
            self._loop.create_task(self.recorder.run(), name="girder-dask recorder"),
            self._loop.create_task(self._pull(), name="girder-dask pull"),
            self._loop.create_task(self._inquire(), name="girder-dask inputs"),
            self._loop.create_task(self._watch_queue(), name="girder-dask queue"),
        ]
        for task in self._tasks:
            log_failure(task, logger, task.get_name())
        logger.info("girder_dask %s runs the jobs of %s", __version__, self._api_url)

    def _api(self) -> SchedulerApi:
        timeout = config.seconds("scheduler.request-timeout")
        return SchedulerApi(self._api_url or "", self._credential, timeout_s=timeout)

    async def before_close(self) -> None:
        """Give runs their time, tell Girder what it has not heard, and stop."""
        await self.leaving.close()
        if not await self.recorder.flush(_CLOSING_TIME):
            logger.warning(
                "The scheduler closes with %d jobs of which Girder has not heard all",
                self.recorder.waiting,
            )
        self._accounts.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._cluster.close()
        for name, threads in self._threads.items():
            threads.shutdown(wait=False, cancel_futures=True)
            self._apis[name].close()

    # -- Dask ---------------------------------------------------------------------------------

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Take note of a worker."""
        self._cluster.losses.joined(worker, scheduler.workers[worker])
        self.leaving.joined(worker)

    def log_event(self, topic: str, msg: Any) -> None:
        """Take in what Dask says of workers that are lost."""
        if topic == "all" and isinstance(msg, Mapping) and msg.get("action") == "remove-worker":
            # It may have stolen some of them, of which no transition has told.
            for key in msg.get("processing-tasks", ()):
                self.dispatcher.on_assigned(key, msg["worker"])
        for worker in self._cluster.losses.heard(topic, msg):
            if worker not in self._scheduler.workers:
                self.dispatcher.on_loss_explained(worker)

    def transition(self, key: Any, start: str, finish: str, *_args: Any, **details: Any) -> None:
        """Pass what Dask does with our keys on. Only look-ups for keys that are not ours."""
        if start == "released":
            is_open = self.dispatcher.is_open(key)
            (self._cluster.on_received if is_open else self._cluster.on_late_arrival)(key)
        if key not in self.dispatcher:
            return
        worker = details.get("worker")
        if finish == "processing":
            self.dispatcher.on_assigned(key, self._cluster.assigned_to(key) or "")
        elif finish == "memory":
            self.dispatcher.on_finished(key, worker, self._cluster.on_result(key))
            self._accounts.await_report(key, worker, partial(self.dispatcher.on_forgotten, key))
        elif finish == "erred":
            self.dispatcher.on_finished(key, worker)
            raised = bool(details.get("exception_text"))
            lost = None if raised else worker
            failed = self.dispatcher.on_failed
            failed = partial(failed, key, _reason(details), raised=raised, worker=lost)
            self._accounts.await_report(key, worker, failed)
        elif finish == "forgotten":
            self._was_forgotten(key, start)
        elif start == "processing" and finish == "released":
            self._was_taken_away(key, worker)

    def _was_taken_away(self, key: str, worker: str | None) -> None:
        job = self.dispatcher.jobs.get(key)
        address = worker or (job.worker if job is not None else None)
        alive = address in self._scheduler.workers
        # A worker may have been ended for its memory while it was leaving.
        leaving = address in self.leaving and not self._cluster.losses.is_known(address)
        self.dispatcher.on_released(key, worker, alive=alive, leaving=leaving)

    def _was_forgotten(self, key: str, start: str) -> None:
        self.dispatcher.retained.lose(key)
        if start in ("memory", "erred") and self.dispatcher.is_open(key):
            return  # its account is waited for
        # When all that goes with it is forgotten too.
        self._loop.call_soon(self._forgotten, key)

    def _forgotten(self, key: str) -> None:
        self.dispatcher.on_forgotten(key)

    # -- Girder -------------------------------------------------------------------------------

    async def _post(
        self, updates: list[dict[str, Any]], received: list[tuple[str, int]]
    ) -> Mapping[str, list[str]]:
        return await self._loop.run_in_executor(
            self._threads["updates"], self._apis["updates"].update, self.id, updates, received
        )

    def _verdict(self, job_id: str, kind: str) -> None:
        self.dispatcher.on_verdict(job_id, kind)

    def _heard(self, job_id: str, attempt: int) -> None:
        self.dispatcher.attempts.heard(job_id, attempt)

    async def _pull(self) -> None:
        """Ask Girder for jobs that this scheduler lacks: at start, and on a period."""
        interval = config.seconds("scheduler.pull-interval")
        delay = config.seconds("scheduler.retry-delay")
        complaint = None
        while True:
            try:
                is_all = await self._claim()
                wait = interval if is_all else 0.0
                delay, complaint = config.seconds("scheduler.retry-delay"), None
            except Exception as e:
                # Whatever it is, also a Girder of another version: it asks again.
                if str(e) != complaint:
                    unexpected = None if isinstance(e, GirderError) else e
                    logger.warning(
                        "Cannot ask Girder for unfinished jobs: %s", e, exc_info=unexpected
                    )
                    complaint = str(e)
                wait, delay = delay, min(delay * 2, interval)
            self.rpc.claim_error = complaint
            await asyncio.sleep(wait)

    async def _claim(self) -> bool:
        """Take over jobs. Say whether there is no more to ask for now."""
        lacking = self._audit.lacking()
        answer = await self._ask_girder("claim", self.id, _CLAIM_LIMIT, self._audit.after, lacking)
        self.dispatcher.cancel(answer["cancel"])
        self._audit.hear(answer.get("held"))
        specs = JobSpec.from_wires(answer["specs"])
        if specs:
            logger.info("Girder had %d unfinished jobs for this scheduler", len(specs))
            self.dispatcher.accept(specs)
        return not specs and not self._audit.lacking()

    async def _watch_queue(self) -> None:
        """Look why jobs wait, and end those that wait for too long."""
        pause, guard = 0.0, Guard(logger, "The look why jobs wait")
        while True:
            await asyncio.sleep(guard.delay_s or pause)
            with guard:
                pause = self.dispatcher.pending.look()

    async def _look_for_missing(self) -> None:
        """Look for jobs that were lost on their way to Dask."""
        guard = Guard(logger, "The look for jobs that Dask has lost")
        while True:
            await asyncio.sleep(self._audit_interval)
            with guard:
                self._missing.look()

    async def _inquire(self) -> None:
        """Ask Girder for jobs that others wait for and that are not in hand."""
        interval = config.seconds("scheduler.pull-interval")
        complaint = None
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._unknown.wait(), interval)
            self._unknown.clear()
            try:
                await self._ask(self.dispatcher.dependencies.unknown())
                complaint = None
            except Exception as e:
                # As above.
                if str(e) != complaint:
                    unexpected = None if isinstance(e, GirderError) else e
                    logger.warning(
                        "Cannot ask Girder for the inputs of jobs: %s", e, exc_info=unexpected
                    )
                    complaint = str(e)
                await asyncio.sleep(config.seconds("scheduler.retry-delay"))

    async def _ask(self, ids: Sequence[str]) -> None:
        for i in range(0, len(ids), _CLAIM_LIMIT):
            some = ids[i : i + _CLAIM_LIMIT]
            self.dispatcher.dependencies.learn(some, await self._ask_girder("states", some))

    async def _ask_girder(self, what: str, *arguments: Any) -> Any:
        ask = getattr(self._apis["claims"], what)
        return await self._loop.run_in_executor(self._threads["claims"], ask, *arguments)


def _reason(details: Mapping[str, Any]) -> str:
    """Say why Dask gave up on a task, from the arguments of its transition."""
    text = details.get("exception_text")
    if text:
        return f"Dask could not run the task: {text}"
    return (
        "The task was lost with more workers than distributed.scheduler.allowed-failures allows, "
        "so it is not tried again. Look for a lack of memory or a crash in the workers' logs."
    )
