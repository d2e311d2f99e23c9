"""The interface to Dask, implemented inside Dask's scheduler."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dask._task_spec import Task, TaskRef, parse_input
from distributed import Scheduler, Status
from distributed.scheduler import Computation, TaskState

from girder_dask.protocol.celery_message import QUEUE_RESOURCE_PREFIX
from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.names import ATTEMPT_ANNOTATION
from girder_dask.scheduler.placement.queue_workers import QueueWorkers, serves_queues_only
from girder_dask.scheduler.placement.window_sizes import WindowSizes
from girder_dask.scheduler.window import QueuedJob, Window
from girder_dask.scheduler.worker_losses import WorkerLosses
from girder_dask.scheduler.worker_rpc import WorkerRpc
from girder_dask.utils.background import Guard
from girder_dask.utils.error_log import describe

__all__ = ["WINDOW_INTERVAL_S", "DaskCluster", "WorkerFacts"]

logger = logging.getLogger(__name__)

#: Seconds between calls of :meth:`DaskCluster.update_window`, for changes of workers that Dask
#: does not report to plugins.
WINDOW_INTERVAL_S = 1.0
# The name of a client that exists only in the scheduler's state: keys stay while it wants them.
# Unlike fire_and_forget, it still wants a key when the task has finished.
_KEEPER = "girder-dask-keeper"
# The name and the id of the span of all jobs. Dask keeps each span for ever, here and in the
# workers, and would make a new one for each job that comes when no other runs.
_SPAN = "girder_dask"
# The number of groups of tasks in a computation from which new tasks are of another one. Dask keeps
# the last computations.
_MAX_GROUPS = 100
# The states of a worker before it is ready, and in which it ends.
_UNCONNECTED = (Status.init, Status.closing, Status.closed)
_SUBMIT_STIMULUS, _RELEASE_STIMULUS = "girder-dask-submit", "girder-dask-release"


class WorkerFacts(NamedTuple):
    """A connected worker."""

    address: str
    name: str
    nthreads: int
    resources: Mapping[str, float]


class DaskCluster(WorkerRpc):
    """The cluster inside its scheduler's process, which submits jobs and keeps their results.

    Tasks are created in the scheduler's state, with its public methods and without a client.

    Parameters
    ----------
    scheduler
        Dask's scheduler.
    run_job
        The function of every task. Its arguments are the spec of a job and, as ``values``, the
        results of its dependencies that are on the cluster.
    jobs_per_thread
        How many jobs Dask has at once for each thread of its workers; None for no limit.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        run_job: Callable[..., Any],
        jobs_per_thread: float | None = None,
    ) -> None:
        super().__init__(scheduler)
        self._run_job = run_job
        self._sizes = WindowSizes(scheduler, jobs_per_thread)
        #: The jobs that Dask has, and those that wait.
        self.window = Window()
        self._refills = False
        self._refill_guard = Guard(logger, "Giving jobs to Dask")
        self._order = itertools.count()
        self._released: list[str] = []
        self._pins: dict[str, set[str]] = {}
        self._announce_guard = Guard(logger, "Telling Dask's plugins of a task")
        self._release_guard = Guard(logger, "Releasing the keys of jobs")
        self._timer_guard = Guard(logger, "A delayed call")
        #: Why workers were lost.
        self.losses = WorkerLosses()
        #: The workers of queues, which no other task gets.
        self.queue_workers = QueueWorkers(scheduler)
        #: Called with the key of a task that Dask did not take, and the reason.
        self.on_refused: Callable[[str, str], None] = lambda _key, _reason: None

    # -- submission ---------------------------------------------------------------------------

    def submit(self, specs: Sequence[JobSpec], values: Mapping[str, Mapping[str, str]]) -> None:
        """Queue jobs for Dask, which gets the first of them."""
        for spec in specs:
            # After the tasks that clients have submitted so far, and before those to come.
            priority = (-spec.priority, self._scheduler.generation + 0.5, next(self._order))
            self.window.add(QueuedJob(spec, values.get(spec.id, {}), priority))
        self.refill()

    def refill(self) -> None:
        """Give jobs to Dask in the next cycle of the event loop, since this may be a transition."""
        if not self._refills:
            self._refills = True
            asyncio.get_running_loop().call_soon(self._refill)

    def _refill(self) -> None:
        self._refills = False
        with self._refill_guard:
            if self.window.waiting:
                computation = self._computation()
                for job in self.window.take(self._sizes.size):
                    self._try_give(job, computation)

    def _try_give(self, job: QueuedJob, computation: Computation) -> None:
        try:
            self._give(job, computation)
        except Exception as e:
            # The others are still given. This job would otherwise wait for ever.
            logger.exception("Dask did not take job %s", job.spec.id)
            self.on_refused(job.spec.key, f"Dask did not take the task: {describe(e)}")

    def on_ended(self, key: str) -> None:
        """Let the next job follow one whose task has ended, perhaps within a transition."""
        if self.window.remove(key) and self.window.waiting:
            self.refill()

    def update_window(self) -> None:
        """Adapt the window to the workers as they are now."""
        self._sizes.refresh()
        self.refill()

    def _computation(self) -> Computation:
        """Return the computation of new tasks: a new one if all tasks before have ended.

        A cluster may never be idle, and a computation refers to all groups that it has had.
        """
        scheduler = self._scheduler
        last = scheduler.computations[-1] if scheduler.computations else None
        if last is None or scheduler.is_idle or len(last.groups) >= _MAX_GROUPS:
            scheduler.computations.append(Computation())
        return scheduler.computations[-1]

    def _add_to_span(self, ts: TaskState) -> None:
        """Count a task in the span of all jobs, which does not refer to its group."""
        spans: Any = self._scheduler.extensions.get("spans")
        if spans is None:
            return
        ts.annotations = {**(ts.annotations or {}), "span": {"name": (_SPAN,), "ids": (_SPAN,)}}
        spans.observe_tasks([ts], code=(), span_metadata={})
        ts.annotations.pop("span", None)
        if (
            ts.group.span_id == _SPAN
        ):  # and not that of another client, whose tasks are in the group
            spans.spans[_SPAN].groups.discard(ts.group)

    def _give(self, job: QueuedJob, computation: Computation) -> None:
        """Create the task of a job, as ``Scheduler.update_graph`` does for a client."""
        scheduler, spec = self._scheduler, job.spec
        # Results that were lost meanwhile are fetched from Girder.
        values = {job_id: key for job_id, key in job.values.items() if key in scheduler.tasks}
        run_spec = self._run_spec(spec, values)
        ts = scheduler.new_task(spec.key, run_spec, "released", computation=computation)
        ts.priority = job.priority
        if spec.resources:
            ts.annotations = {"resources": dict(spec.resources)}
            ts.resource_restrictions = dict(spec.resources)
        for key in values.values():
            ts.add_dependency(scheduler.tasks[key])
        self._add_to_span(ts)
        scheduler.client_desires_keys([spec.key], _KEEPER)
        for client in self._pins.pop(spec.key, ()):
            self.pin(spec.key, client)
        self._announce(ts, job.priority)
        scheduler.transitions({spec.key: "waiting"}, stimulus_id=_SUBMIT_STIMULUS)

    def _run_spec(self, spec: JobSpec, values: Mapping[str, str]) -> Task:
        if not values:
            # Dask queues data producers, and assigns each once a worker has a free thread. Of other
            # tasks, it assigns a few at once, perhaps all of them to the same worker.
            return Task(spec.key, self._run_job, spec, _data_producer=True)
        references = {job_id: TaskRef(key) for job_id, key in values.items()}
        return Task(spec.key, self._run_job, spec, values=parse_input(references))

    def _announce(self, ts: TaskState, priority: tuple[float, ...]) -> None:
        """Tell the plugins of Dask, such as the graph of its dashboard, of a new task."""
        for plugin in list(self._scheduler.plugins.values()):
            with self._announce_guard:
                plugin.update_graph(
                    self._scheduler,
                    client=_KEEPER,
                    keys={ts.key},
                    tasks=[ts.key],
                    annotations={},
                    priority={ts.key: priority},
                    dependencies={ts.key: {each.key for each in ts.dependencies}},
                    stimulus_id=_SUBMIT_STIMULUS,
                )

    # -- results ------------------------------------------------------------------------------

    def on_result(self, key: str) -> int:
        """Turn a task whose result is in memory into data; return the size of the result.

        If its worker is lost, so is the result. The task does not run again, since that would
        repeat its side effects.
        """
        ts = self._scheduler.tasks[key]
        ts.run_spec = None
        return int(ts.get_nbytes())

    def release(self, keys: Sequence[str]) -> None:
        """Release keys in the next cycle of the event loop, since this may be within a transition.

        Dask may assign them again until then, or while another client wants them. Such a run does
        not start.
        """
        for key in keys:
            self.on_ended(key)
            self.set_attempt(key, 0)
        if not self._released:
            asyncio.get_running_loop().call_soon(self._release_now)
        self._released += keys

    def _release_now(self) -> None:
        keys, self._released = self._released, []
        known = []
        for key in keys:
            if key in self._scheduler.tasks:
                known.append(key)
            with self._release_guard:
                self._unpin(key)
        if known and _KEEPER in self._scheduler.clients:
            with self._release_guard:
                self._scheduler.client_releases_keys(known, _KEEPER, stimulus_id=_RELEASE_STIMULUS)

    def is_wanted(self, key: str) -> bool:
        """Return True if another client wants a key."""
        ts = self._scheduler.tasks.get(key)
        if ts is None:
            return False
        return any(client.client_key != _KEEPER for client in ts.who_wants or ())

    def pin(self, key: str, client: str) -> None:
        """Make a client want a key, now or when the scheduler receives it."""
        if client not in self._scheduler.clients:
            return
        if key in self._scheduler.tasks:
            self._scheduler.client_desires_keys([key], client)
        else:
            self._pins.setdefault(key, set()).add(client)

    def _unpin(self, key: str) -> None:
        for client in self._pins.pop(key, ()):
            self._scheduler.report(
                {
                    "op": "cancelled-keys",
                    "keys": [key],
                    "reason": "girder job",
                    "msg": "The job ended before it ran, or runs under another key. See its log.",
                },
                client=client,
            )

    # -- tasks and workers --------------------------------------------------------------------

    def set_attempt(self, key: str, attempt: int) -> None:
        """Set the attempt number for the next run of a key. This may be within a transition."""
        ts = self._scheduler.tasks.get(key)
        if ts is not None:
            ts.annotations = {**(ts.annotations or {}), ATTEMPT_ANNOTATION: attempt}

    def assigned_to(self, key: str) -> str | None:
        """Return the address of the worker to which Dask has assigned a key."""
        ts = self._scheduler.tasks.get(key)
        ws = ts.processing_on if ts is not None else None
        return None if ws is None else str(ws.address)

    def unrunnable(self) -> dict[str, str]:
        """Return the keys that no worker can run, each with the reason."""
        scheduler = self._scheduler
        # Without any worker, Dask queues tasks just as it does when all workers are busy.
        queued = () if scheduler.running else scheduler.queued
        reasons: dict[Any, str] = {}
        found = {}
        for ts in itertools.chain(queued, scheduler.unrunnable):
            resources = tuple(sorted((ts.resource_restrictions or {}).items()))
            if resources not in reasons:
                reasons[resources] = self._unrunnable_reason(dict(resources))
            if reasons[resources]:
                found[str(ts.key)] = reasons[resources]
        for kind in self.window.waiting_kinds():
            reason = self._unrunnable_reason(dict(kind))
            if reason:
                found |= dict.fromkeys(self.window.waiting_keys(kind), reason)
        return found

    def _unrunnable_reason(self, resources: Mapping[str, float]) -> str:
        """Return why no worker can run a task with these resources; empty if one can."""
        reason = _unrunnable_reason(self._scheduler, resources)
        has_workers = _has_workers(self._scheduler)
        return reason if has_workers else "; ".join(filter(None, (reason, self.losses.refusal)))

    def has_worker(self, worker: str) -> bool:
        """Return True if a worker is connected."""
        return worker in self._scheduler.workers

    def workers(self) -> list[WorkerFacts]:
        """Return the connected workers."""
        return [
            WorkerFacts(address, str(ws.name), ws.nthreads, ws.resources)
            for address, ws in self._scheduler.workers.items()
        ]

    def loss_reason(self, worker: str) -> str:
        """Return why a worker was lost; empty if that is unknown."""
        return self.losses.reason(worker)

    # -- the event loop -----------------------------------------------------------------------

    def time(self) -> float:
        """Return the time of the event loop."""
        return asyncio.get_running_loop().time()

    def call_later(self, delay_s: float, function: Callable[[], None]) -> Callable[[], None]:
        """Call a function after a delay; return a function that cancels the call."""

        def call() -> None:
            with self._timer_guard:
                function()

        return asyncio.get_running_loop().call_later(delay_s, call).cancel


def _has_workers(scheduler: Scheduler) -> bool:
    """Return True if a worker is connected. One that fails at its start may join every second."""
    return any(worker.status not in _UNCONNECTED for worker in scheduler.workers.values())


def _unrunnable_reason(scheduler: Scheduler, resources: Mapping[str, float]) -> str:
    """Return why no worker can run a task with these resources; empty if one can."""
    if not _has_workers(scheduler):
        return "no worker is connected to the Dask scheduler"
    fit = set(scheduler.workers)
    if not any(name.startswith(QUEUE_RESOURCE_PREFIX) for name in resources):
        fit = {a for a, ws in scheduler.workers.items() if not serves_queues_only(ws.resources)}
        if not fit:
            return "every connected worker serves only tasks of its queues"
    for name, amount in resources.items():
        offers = scheduler.resources.get(name, {})
        fit = {worker for worker in fit if offers.get(worker, 0.0) >= amount}
    count = len(scheduler.workers)
    workers = "the one worker does not have" if count == 1 else f"none of the {count} workers has"
    if not fit:
        asked = " and ".join(f"{name}={amount:g}" for name, amount in resources.items())
        return f"{workers} the resources {asked} (dask worker --resources)"
    if not any(ws.address in fit for ws in scheduler.running):
        return (
            f"no worker that could run it takes tasks now: {len(fit)} of them are paused, since "
            "their memory is nearly full, or are leaving"
        )
    return ""
