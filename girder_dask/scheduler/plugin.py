"""The scheduler plugin, which connects the parts and passes on Dask's transitions.

The transitions go to a :class:`~girder_dask.scheduler.dispatcher.Dispatcher`, which handles the
events of jobs; a :class:`~girder_dask.scheduler.event_recorder.Recorder` reports them to Girder.
Requests to Girder are made in threads, so that the scheduler's event loop never waits.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import uuid
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from distributed import Scheduler
from distributed.diagnostics.plugin import NannyPlugin, SchedulerPlugin, WorkerPlugin

from girder_dask import config
from girder_dask._version import __version__
from girder_dask.errors import GirderError
from girder_dask.http.scheduler_api import GirderRequests, SchedulerApi
from girder_dask.protocol.names import CELERY_PLUGIN_NAME, PLUGIN_NAME
from girder_dask.scheduler.adaptive import AdaptiveTarget
from girder_dask.scheduler.claims import GirderReconciler, JobClaims
from girder_dask.scheduler.dask_cluster import WINDOW_INTERVAL_S, DaskCluster
from girder_dask.scheduler.dispatcher import Dispatcher
from girder_dask.scheduler.event_recorder import Recorder
from girder_dask.scheduler.job_state import JobTable
from girder_dask.scheduler.job_transitions import JobTransitions
from girder_dask.scheduler.lease import SchedulerLease, system_id
from girder_dask.scheduler.metrics.collector import MetricsCollector
from girder_dask.scheduler.metrics.collector import install as install_metrics
from girder_dask.scheduler.metrics.collector import remove as remove_metrics
from girder_dask.scheduler.metrics.https_certificate import HttpsCertificate
from girder_dask.scheduler.metrics.of_workers import WorkerMetrics
from girder_dask.scheduler.pending_reasons import PendingReasons
from girder_dask.scheduler.placement.stealing import STEAL_INTERVAL_S, JobStealing
from girder_dask.scheduler.rpc import RpcHandlers
from girder_dask.scheduler.run_reports import CHECK_INTERVAL_S, RunReports
from girder_dask.scheduler.worker_retirement import WorkerRetirement
from girder_dask.tls import keep_certificate
from girder_dask.utils.background import Guard, log_failure, repeat
from girder_dask.utils.backoff import Backoff

__all__ = ["PLUGIN_NAME", "GirderSchedulerPlugin", "WorkerSide"]

logger = logging.getLogger(__name__)

# The states in which the task of a job has ended.
_ENDS = ("memory", "erred", "forgotten")
_FLUSH_TIMEOUT_S = 10.0
_RELEASE_TIMEOUT_S = 3.0
# The interval between reconciliations, as a multiple of the interval between claims.
_CLAIMS_PER_RECONCILIATION = 6


@dataclass(frozen=True)
class WorkerSide:
    """The plugins that the scheduler sends to workers and nannies, and the function that it runs.

    Parameters
    ----------
    run_job
        The function of every Dask task that runs a job.
    make_plugin
        Makes the plugin of workers, given the URL of Girder's REST API.
    make_nanny_plugin
        Makes the plugin of nannies.
    make_celery_plugin
        Makes the plugin of workers that imports girder_worker's tasks in advance.
    """

    run_job: Callable[..., Any]
    make_plugin: Callable[[str | None], WorkerPlugin]
    make_nanny_plugin: Callable[[], NannyPlugin]
    make_celery_plugin: Callable[[], WorkerPlugin]


class GirderSchedulerPlugin(SchedulerPlugin):
    """The Dask plugin that runs the jobs of one Girder.

    Parameters
    ----------
    workers
        The plugins for workers and nannies, and the function of tasks.
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
        self._is_credential_fixed = credential is not None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, scheduler: Scheduler) -> None:
        """Connect the parts and start the background work. Called when the scheduler listens."""
        self._scheduler = scheduler
        interval_s = _CLAIMS_PER_RECONCILIATION * config.seconds("scheduler.pull-interval")

        # The jobs, and where their events go.
        jobs = JobTable()
        self._cluster = cluster = _make_cluster(scheduler, self._workers.run_job)
        self._girder = girder = GirderRequests(self.id, self._connect_to_girder)
        self.recorder = recorder = _make_recorder(girder)
        self.transitions = transitions = _make_transitions(jobs, cluster, recorder)
        self.dispatcher = dispatcher = Dispatcher(jobs, transitions, cluster, recorder)
        cluster.on_refused = dispatcher.on_failed

        # Requests to Girder, and procedures for Girder, workers and notebooks.
        reconciler = GirderReconciler(jobs, interval_s=interval_s)
        place = f"{scheduler.address} on {socket.gethostname()}"
        lease = SchedulerLease(place, system_id(), config.seconds("scheduler.lease"))
        self.claims = JobClaims(girder, dispatcher, transitions, reconciler, lease)
        self.claims.on_celery = lambda: self._begin("celery", self._register_celery_plugin())
        self.rpc = RpcHandlers(
            self.id,
            dispatcher=dispatcher,
            retained=transitions.retained,
            recorder=recorder,
            cluster=cluster,
            girder=girder,
            claims=self.claims,
            api_url=self._api_url,
        )
        grace_s = config.seconds("scheduler.leave-grace")
        self.retirement = WorkerRetirement(scheduler, dispatcher, cluster, grace_s)
        scheduler.handlers |= {**self.retirement.handlers, **self.rpc.handlers}
        await self._register_worker_plugins()

        # Periodic checks.
        self._reports = RunReports(jobs, cluster, recorder)
        timeout_s = config.seconds_or_none("scheduler.no-worker-timeout")
        pending = PendingReasons(jobs, transitions, cluster, recorder, timeout_s=timeout_s)
        self._repeat("Scanning the queue", pending.scan)
        self._repeat("The check for lost reports of runs", self._reports.check, CHECK_INTERVAL_S)
        self._repeat("Adapting the window", cluster.update_window, WINDOW_INTERVAL_S)
        self._repeat("Stealing jobs", JobStealing(scheduler, jobs).steal, STEAL_INTERVAL_S)

        self._metrics = MetricsCollector(
            jobs=jobs,
            cluster=cluster,
            recorder=recorder,
            girder=girder,
            lease=lease,
            others=self._other_metrics(_adapt(scheduler, cluster)),
        )
        install_metrics(self._metrics)
        self._begin("certificate", keep_certificate(scheduler, "scheduler"))
        self._begin("claims", self.claims.run())
        self._begin("dependencies", self.claims.run_lookups())
        self._begin("recorder", recorder.run(dispatcher.on_verdict, jobs.on_recorded))
        logger.info("girder_dask %s runs the jobs of %s", __version__, self._api_url)

    def _other_metrics(self, target: AdaptiveTarget) -> list[Callable[[], Iterable[Any]]]:
        """Return the metrics of workers, and that of Girder's https if it is reached by https."""
        workers = WorkerMetrics(self._scheduler, target)
        if not (self._api_url or "").startswith("https:"):
            return [workers.families]
        https = HttpsCertificate(self._api_url or "")
        self._repeat("The look at the certificate of Girder's https", https.step)
        return [workers.families, https.families]

    def _connect_to_girder(self) -> SchedulerApi:
        timeout = config.seconds("scheduler.request-timeout")
        return SchedulerApi(self._api_url or "", self._read_credential, timeout_s=timeout)

    def _read_credential(self) -> str | None:
        """Return the API key, from its file if there is one, where it may have been replaced."""
        if self._is_credential_fixed:
            return self._credential
        return config.credential() or self._credential

    async def _register_worker_plugins(self) -> None:
        await self._scheduler.register_worker_plugin(
            comm=None,
            plugin=pickle.dumps(self._workers.make_plugin(self._api_url)),
            name=PLUGIN_NAME,
            idempotent=False,
        )
        await self._scheduler.register_nanny_plugin(
            comm=None,
            plugin=pickle.dumps(self._workers.make_nanny_plugin()),
            name=PLUGIN_NAME,
            idempotent=False,
        )

    async def _register_celery_plugin(self) -> None:
        """Have all workers, those to come too, import the tasks of girder_worker."""
        plugin = self._workers.make_celery_plugin()
        await self._scheduler.register_worker_plugin(
            comm=None, plugin=pickle.dumps(plugin), name=CELERY_PLUGIN_NAME, idempotent=False
        )

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"girder-dask {name}")
        self._tasks.append(log_failure(task, logger, task.get_name()))

    def _repeat(self, what: str, step: Callable[[], Any], interval_s: float = 0.0) -> None:
        self._begin(what, repeat(step, Guard(logger, what), interval_s=interval_s))

    async def before_close(self) -> None:
        """Drain workers, deliver pending updates, and stop."""
        await self.retirement.close()
        is_delivered = await self.recorder.flush(_FLUSH_TIMEOUT_S)
        if not is_delivered:
            logger.warning(
                "The scheduler closes before Girder has received all updates of %d jobs",
                self.recorder.waiting,
            )
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if is_delivered and self.claims.lease.leads:
            await self._release_lease()
        self._girder.close()
        remove_metrics(self._metrics)

    async def _release_lease(self) -> None:
        """Let a scheduler that stands by lead at once."""
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT_S):
                await self._girder.release_lease()
        except (GirderError, TimeoutError) as e:
            logger.warning("The lease ends by itself, since Girder did not take it back: %s", e)

    # -- Dask ---------------------------------------------------------------------------------

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Record that a worker has joined."""
        self._cluster.losses.on_joined(worker, scheduler.workers[worker])
        self.retirement.on_joined(worker)
        self._cluster.queue_workers.on_joined(worker)
        self._cluster.update_window()

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:  # noqa: ARG002
        """Record that a worker has left."""
        self._cluster.losses.on_left(worker)
        self._cluster.queue_workers.on_left(worker)
        self._cluster.update_window()

    def update_graph(self, scheduler: Scheduler, *, tasks: list[Any], **_: Any) -> None:  # noqa: ARG002
        """Keep new tasks of others that name no queue off the workers of queues."""
        self._cluster.queue_workers.restrict(tasks)

    def log_event(self, topic: str, msg: Any) -> None:
        """Handle Dask's events about lost workers."""
        if topic == "all" and isinstance(msg, Mapping) and msg.get("action") == "remove-worker":
            if not msg.get("expected") and msg["worker"] not in self.retirement:
                self._cluster.losses.lost += 1
            # The worker may have stolen some of these tasks without any transition.
            for key in msg.get("processing-tasks", ()):
                self.dispatcher.on_assigned(key, msg["worker"])
        for worker in self._cluster.losses.on_event(topic, msg):
            if not self._cluster.has_worker(worker):
                self.dispatcher.on_loss_explained(worker)

    def transition(self, key: Any, start: str, finish: str, *_args: Any, **details: Any) -> None:
        """Pass on the transitions of jobs' keys. Other keys cost only look-ups."""
        if finish in _ENDS:
            self._cluster.on_ended(key)
        if key not in self.dispatcher:
            return
        worker = details.get("worker")
        if finish == "processing":
            self.dispatcher.on_assigned(key, self._cluster.assigned_to(key) or "")
        elif finish == "memory":
            self.dispatcher.on_finished(key, worker, self._cluster.on_result(key))
            self._reports.wait_for(key, worker, partial(self.dispatcher.on_forgotten, key))
        elif finish == "erred":
            self._on_erred(key, worker, details)
        elif finish == "forgotten":
            self._on_forgotten(key, start)
        elif start == "processing" and finish == "released":
            self._on_released(key, worker)

    def _on_erred(self, key: str, worker: str | None, details: Mapping[str, Any]) -> None:
        self.dispatcher.on_finished(key, worker)
        raised = bool(details.get("exception_text"))
        on_failed = partial(
            self.dispatcher.on_failed,
            key,
            _failure_reason(details),
            raised=raised,
            lost_worker=None if raised else worker,
        )
        self._reports.wait_for(key, worker, on_failed)

    def _on_released(self, key: str, worker: str | None) -> None:
        job = self.dispatcher.jobs.by_key(key)
        address = worker or (job.worker if job is not None else None)
        alive = address is not None and self._cluster.has_worker(address)
        # A nanny may have ended the leaving worker for its memory use.
        leaving = address in self.retirement and not self._cluster.losses.is_explained(address)
        self.dispatcher.on_released(key, worker, alive=alive, leaving=leaving)

    def _on_forgotten(self, key: str, start: str) -> None:
        self.transitions.retained.on_lost(key)
        if start in ("memory", "erred") and self.dispatcher.jobs.is_open(key):
            return  # the report of its run is awaited
        # Deferred until Dask has also forgotten the tasks that it forgets together with this one.
        asyncio.get_running_loop().call_soon(self.dispatcher.on_forgotten, key)


def _make_cluster(scheduler: Scheduler, run_job: Callable[..., Any]) -> DaskCluster:
    jobs_per_thread = config.positive_or_none("scheduler.jobs-per-thread")
    return DaskCluster(scheduler, run_job, jobs_per_thread)


def _adapt(scheduler: Scheduler, cluster: DaskCluster) -> AdaptiveTarget:
    """Answer adaptive clusters with the jobs that wait counted in."""
    target = AdaptiveTarget(scheduler, cluster.window)
    target.install()
    return target


def _make_recorder(girder: GirderRequests) -> Recorder:
    return Recorder(
        girder.update,
        interval_s=config.seconds("scheduler.flush-interval"),
        batch_size=int(config.get("scheduler.batch-size")),
        buffer_bytes=config.nbytes("scheduler.buffer"),
        retry_delay_s=config.seconds("scheduler.retry-delay"),
        max_retry_delay_s=config.seconds("scheduler.retry-delay-max"),
    )


def _make_transitions(jobs: JobTable, cluster: DaskCluster, recorder: Recorder) -> JobTransitions:
    return JobTransitions(
        jobs,
        cluster,
        recorder,
        backoff=Backoff(
            config.seconds("scheduler.retry-backoff"),
            config.seconds("scheduler.retry-backoff-max"),
            jitter=0.0,  # the delay is announced in the log of the job
        ),
        result_ttl_s=config.seconds("scheduler.keep-values"),
        max_result_bytes=config.nbytes("scheduler.keep-values-bytes"),
    )


def _failure_reason(details: Mapping[str, Any]) -> str:
    """Return why Dask gave up on a task, from the arguments of its transition."""
    text = details.get("exception_text")
    if text:
        return f"Dask could not run the task: {text}"
    return (
        "The task was lost with more workers than distributed.scheduler.allowed-failures allows, "
        "so it is not retried. Look for a lack of memory or a crash in the workers' logs."
    )
