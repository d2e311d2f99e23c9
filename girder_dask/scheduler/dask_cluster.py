"""The interface to Dask, implemented inside Dask's scheduler."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import dask
from distributed import Client, Future, Scheduler

from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.names import ATTEMPT_ANNOTATION
from girder_dask.scheduler.worker_losses import WorkerLosses
from girder_dask.scheduler.worker_rpc import WorkerRpc
from girder_dask.utils.background import Guard
from girder_dask.utils.bounded_dict import BoundedDict

__all__ = ["REFUSED_INTERVAL_S", "DaskCluster", "WorkerFacts"]

logger = logging.getLogger(__name__)

#: Seconds between calls of :meth:`DaskCluster.take_refused`.
REFUSED_INTERVAL_S = 1.0
# The name of a client that exists only in the scheduler's state: keys stay while it wants them.
# Unlike fire_and_forget, it still wants a key when the task has finished.
_KEEPER = "girder-dask-keeper"
_CONNECT_DELAY_S = 0.5
# The scheduler remembers at most this many keys that were released before they arrived.
_MAX_EARLY_RELEASES = 100_000


class WorkerFacts(NamedTuple):
    """A connected worker."""

    address: str
    name: str
    nthreads: int
    resources: Mapping[str, float]


class DaskCluster(WorkerRpc):
    """The cluster inside its scheduler's process, which submits jobs and keeps their results.

    Parameters
    ----------
    scheduler
        Dask's scheduler.
    run_job
        The function of every task. Its arguments are the spec of a job and, as ``values``, the
        results of its dependencies that are on the cluster.
    """

    def __init__(self, scheduler: Scheduler, run_job: Callable[..., Any]) -> None:
        super().__init__(scheduler)
        self._run_job = run_job
        self._client: Client | None = None
        self._unsent: dict[str, tuple[JobSpec, Mapping[str, str]]] = {}
        # Submitted jobs with ``values`` that the scheduler has not received yet.
        self._in_flight: dict[str, Future[Any]] = {}
        self._released: list[str] = []
        self._released_early = BoundedDict[str, None](_MAX_EARLY_RELEASES)
        self._pins: dict[str, set[str]] = {}
        # If giving jobs to Dask fails, the DaskReconciler submits them again.
        self._submit_guard = Guard(logger, "Giving jobs to Dask")
        self._release_guard = Guard(logger, "Releasing the keys of jobs")
        self._timer_guard = Guard(logger, "A delayed call")
        #: Why workers were lost.
        self.losses = WorkerLosses()

    # -- submission ---------------------------------------------------------------------------

    def submit(self, specs: Sequence[JobSpec], values: Mapping[str, Mapping[str, str]]) -> None:
        """Submit jobs, or keep them until there is a connection."""
        for spec in specs:
            self._unsent[spec.key] = spec, values.get(spec.id, {})
            self._released_early.pop(spec.key, None)
        if self._client is not None and self._client.status == "closed":
            # Dask closes a client that could not reach the scheduler for some time.
            self._client = None
            self.begin(self.connect())
        elif self._client is not None:
            self._send(self._client)

    async def connect(self) -> None:
        """Connect to this scheduler as a client, and submit the jobs that wait for that."""
        guard = Guard(
            logger,
            f"The connection of the scheduler to itself at {self._scheduler.address}",
            first_delay_s=_CONNECT_DELAY_S,
        )
        while self._client is None:
            with guard:
                self._client = await self._new_client()
            await asyncio.sleep(guard.delay_s)
        self._send(self._client)

    async def _new_client(self) -> Client:
        # Dask keeps a log of a connection's last messages. Here each may hold hundreds of jobs.
        with dask.config.set({"distributed.admin.low-level-log-length": 1}):
            client: Client = await Client(
                self._scheduler.address,
                asynchronous=True,
                security=self._scheduler.security,
                set_as_default=False,
                name="girder-dask",
            )
        return client

    def _send(self, client: Client) -> None:
        jobs, self._unsent = self._unsent, {}
        alike: dict[Any, list[JobSpec]] = defaultdict(list)
        # The futures hold the keys until the keeper wants them: when the futures are deleted, the
        # message that releases their keys arrives after the jobs.
        futures: list[Future[Any]] = []
        for spec, values in jobs.values():
            resources = tuple(sorted((spec.resources or {}).items()))
            if values:
                with self._submit_guard:
                    futures.append(self._send_dependent(client, spec, values))
            else:
                alike[spec.priority, resources].append(spec)
        for (priority, resources), group in alike.items():
            with self._submit_guard:
                futures += client.map(
                    self._run_job,
                    group,
                    key=[spec.key for spec in group],
                    priority=priority,
                    resources=dict(resources) or None,
                    pure=False,
                )

    def _send_dependent(
        self, client: Client, spec: JobSpec, values: Mapping[str, str]
    ) -> Future[Any]:
        future = client.submit(
            self._run_job,
            spec,
            values={job_id: Future(key, client) for job_id, key in values.items()},
            key=spec.key,
            priority=spec.priority,
            resources=dict(spec.resources or {}) or None,
            pure=False,
        )
        self._in_flight[spec.key] = future
        return future

    def take_refused(self) -> list[str]:
        """Return the keys of jobs that Dask refused because the value of an input was lost.

        The scheduler reports a refusal only to the client.
        """
        refused = [key for key, future in self._in_flight.items() if future.status != "pending"]
        for key in refused:
            del self._in_flight[key]
            logger.info("Dask refused %s because the value of an input was lost", key)
        return refused

    def on_received(self, key: str) -> None:
        """Keep a key that the scheduler has received. Called within a transition."""
        self._in_flight.pop(key, None)
        self._scheduler.client_desires_keys([key], _KEEPER)
        for client in self._pins.pop(key, ()):
            if client in self._scheduler.clients:
                self._scheduler.client_desires_keys([key], client)

    def on_received_late(self, key: str) -> None:
        """Prevent runs of a key that was released before it arrived. Called within a transition."""
        if key in self._released_early:
            del self._released_early[key]
            self.set_attempt(key, 0)

    def has(self, key: str) -> bool:
        """Return True if the scheduler has a key, or the key waits for a connection."""
        return key in self._scheduler.tasks or key in self._unsent

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
            if key in self._scheduler.tasks:
                self.set_attempt(key, 0)
            else:
                self._released_early[key] = None
        if not self._released:
            asyncio.get_running_loop().call_soon(self._release_now)
        self._released += keys

    def _release_now(self) -> None:
        keys, self._released = self._released, []
        known = []
        for key in keys:
            self._in_flight.pop(key, None)
            self._unsent.pop(key, None)
            if key in self._scheduler.tasks:
                known.append(key)
            with self._release_guard:
                self._unpin(key)
        if known and _KEEPER in self._scheduler.clients:
            with self._release_guard:
                self._scheduler.client_releases_keys(known, _KEEPER, stimulus_id="girder-dask-drop")

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
                reasons[resources] = _unrunnable_reason(scheduler, dict(resources))
            if reasons[resources]:
                found[str(ts.key)] = reasons[resources]
        return found

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

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()


def _unrunnable_reason(scheduler: Scheduler, resources: Mapping[str, float]) -> str:
    """Return why no worker can run a task with these resources; empty if one can."""
    if not scheduler.workers:
        return "no worker is connected to the Dask scheduler"
    fit = set(scheduler.workers)
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
