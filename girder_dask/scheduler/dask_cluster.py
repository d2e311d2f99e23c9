"""A dispatcher's view of a Dask cluster, from inside its scheduler."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import dask
from distributed import Client, Future, Scheduler

from girder_dask.protocol.messages import JobSpec
from girder_dask.protocol.names import ATTEMPT_ANNOTATION
from girder_dask.scheduler.unrunnable import shortage
from girder_dask.scheduler.worker_losses import WorkerLosses
from girder_dask.utils.background import Guard, log_failure
from girder_dask.utils.bounded_dict import BoundedDict

__all__ = ["DaskCluster"]

logger = logging.getLogger(__name__)

# For the scheduler a client like any other: keys stay while it wants them. Unlike
# fire_and_forget it goes on to want them when they have ended.
_KEEPER = "girder-dask-keeper"
# How often it is looked whether the scheduler has taken jobs with inputs.
_LOOK = 1.0
# How long a worker may take to send what its runs have said, or to say what it has not begun.
_FLUSH_TIME = 3.0
_CONNECT_PAUSE, _CONNECT_PAUSE_MAX = 0.5, 15.0
# How many keys are known that were dropped before the scheduler had them.
_MOST_KNOWN = 100_000

# What may fail, as the log names it. Jobs that Dask was not given are found again, see
# girder_dask.scheduler.dask_reconciler.
_GIVING = "Giving jobs to Dask"
_REFUSING = "Ending jobs that Dask did not take"
_RELEASING = "Releasing the keys of jobs"


class DaskCluster:
    """Submits jobs to the scheduler that this is in, and holds what they return.

    Parameters
    ----------
    scheduler
        Dask's scheduler.
    loop
        Its event loop.
    run_job
        What is to run on a worker. It is given the spec of a job, and as ``values`` those
        of its inputs that are on the cluster.
    refused
        Called with the key of a job that the scheduler did not take, as an input was lost.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        loop: asyncio.AbstractEventLoop,
        run_job: Callable[..., Any],
        refused: Callable[[str], None],
    ) -> None:
        self._scheduler = scheduler
        self._loop = loop
        self._run_job = run_job
        self._refused = refused
        self._client: Client | None = None
        self._waiting: dict[str, tuple[JobSpec, Mapping[str, str]]] = {}
        self._sent: dict[str, Future[Any]] = {}  # jobs with inputs which were not seen yet
        self._look: asyncio.TimerHandle | None = None
        self._dropping: list[str] = []
        self._dropped_early = BoundedDict[str, None](_MOST_KNOWN)
        self._pins: dict[str, set[str]] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._guards = {what: Guard(logger, what) for what in (_GIVING, _REFUSING, _RELEASING)}
        #: Why workers were lost.
        self.losses = WorkerLosses()

    # -- submission ---------------------------------------------------------------------------

    def submit(self, specs: Sequence[JobSpec], values: Mapping[str, Mapping[str, str]]) -> None:
        """Have jobs run; before there is a connection they wait for it."""
        for spec in specs:
            self._waiting[spec.key] = spec, values.get(spec.id, {})
            self._dropped_early.pop(spec.key, None)
        if self._client is not None and self._client.status == "closed":
            # It does that when it has lost the scheduler for some time.
            self._client = None
            self._later(self.connect())
        elif self._client is not None:
            self._send(self._client)

    async def connect(self) -> None:
        """Become a client of the scheduler that this is in, and submit what waits."""
        pause = _CONNECT_PAUSE
        while self._client is None:
            try:
                self._client = await self._new_client()
            except Exception:
                logger.exception(
                    "The scheduler cannot connect to itself at %s, so %d jobs wait; it tries "
                    "again in %g s",
                    self._scheduler.address,
                    len(self._waiting),
                    pause,
                )
                await asyncio.sleep(pause)
                pause = min(pause * 2, _CONNECT_PAUSE_MAX)
        self._send(self._client)

    async def _new_client(self) -> Client:
        # A connection remembers the last messages. Here each may hold hundreds of jobs.
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
        jobs, self._waiting = self._waiting, {}
        alike: dict[Any, list[JobSpec]] = defaultdict(list)
        # They keep the keys until the keeper wants them: what tells the scheduler that they
        # are gone comes after the jobs.
        futures: list[Future[Any]] = []
        for spec, values in jobs.values():
            resources = tuple(sorted((spec.resources or {}).items()))
            if values:
                with self._guards[_GIVING]:
                    futures.append(self._send_dependent(client, spec, values))
            else:
                alike[spec.priority, resources].append(spec)
        for (priority, resources), group in alike.items():
            with self._guards[_GIVING]:
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
        # When an input is lost on the way, the scheduler tells nobody but the client.
        self._sent[spec.key] = future
        if self._look is None:
            self._look = self._loop.call_later(_LOOK, self._look_at_sent)
        return future

    def _look_at_sent(self) -> None:
        self._look = None
        lost = [key for key, future in self._sent.items() if future.status != "pending"]
        for key in lost:
            del self._sent[key]
        for key in lost:
            logger.info("Dask did not take %s, as the value of an input was lost", key)
            with self._guards[_REFUSING]:
                self._refused(key)
        if self._sent and self._look is None:
            self._look = self._loop.call_later(_LOOK, self._look_at_sent)

    def on_received(self, key: str) -> None:
        """Take note that the scheduler has a key, and want it. This is within a transition."""
        self._sent.pop(key, None)
        self._scheduler.client_desires_keys([key], _KEEPER)
        for client in self._pins.pop(key, ()):
            if client in self._scheduler.clients:
                self._scheduler.client_desires_keys([key], client)

    # -- values -------------------------------------------------------------------------------

    def on_result(self, key: str) -> int:
        """Take note that a value is on a worker; return its size in bytes.

        From now on it is data: if its worker is lost, so is the value. The job that made it
        does not run again, which would repeat all that it did.
        """
        ts = self._scheduler.tasks[key]
        ts.run_spec = None
        return int(ts.get_nbytes())

    def drop(self, keys: Sequence[str]) -> None:
        """Want keys no more. Not at once: this may be within a transition.

        Until then Dask may place them again, as it may if another client wants them.
        """
        for key in keys:
            if key in self._scheduler.tasks:
                self.set_attempt(key, 0)
            else:
                self._dropped_early[key] = None
        if not self._dropping:
            self._loop.call_soon(self._release)
        self._dropping += keys

    def on_late_arrival(self, key: str) -> None:
        """Have nothing begin of a key that was on its way here when it was dropped.

        This is within the transition by which the scheduler takes it.
        """
        if key in self._dropped_early:
            del self._dropped_early[key]
            self.set_attempt(key, 0)

    def _release(self) -> None:
        keys, self._dropping = self._dropping, []
        known = []
        for key in keys:
            self._sent.pop(key, None)
            self._waiting.pop(key, None)
            if key in self._scheduler.tasks:
                known.append(key)
            with self._guards[_RELEASING]:
                self._unpin(key)
        if known and _KEEPER in self._scheduler.clients:
            with self._guards[_RELEASING]:
                self._scheduler.client_releases_keys(known, _KEEPER, stimulus_id="girder-dask-drop")

    def is_wanted(self, key: str) -> bool:
        """Say whether a client wants a key, or what another one computes needs it."""
        ts = self._scheduler.tasks.get(key)
        if ts is None:
            return False
        return any(client.client_key != _KEEPER for client in ts.who_wants or ())

    def pin(self, key: str, client: str) -> None:
        """Make a client want a key, now or when the scheduler gets it."""
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

    # -- the rest -----------------------------------------------------------------------------

    def call_later(self, delay: float, function: Callable[[], None]) -> asyncio.TimerHandle:
        """Call a function in ``delay`` seconds."""

        def call() -> None:
            with Guard(logger, "What was to be done later"):
                function()

        return self._loop.call_later(delay, call)

    def stop(self, worker: str, keys: Sequence[str], unstarted: Callable[[str, str], None]) -> None:
        """Tell the runs of keys on a worker to stop, and hear with which it has not begun."""
        self._later(self._stop(worker, keys, unstarted))

    async def _stop(
        self, worker: str, keys: Sequence[str], unstarted: Callable[[str, str], None]
    ) -> None:
        for key in await self._tell(worker, "girder_cancel", keys=list(keys)) or ():
            unstarted(key, worker)

    def end_run(self, worker: str, run: str) -> None:
        """Tell a run on a worker that nobody hears it any more."""
        self._later(self._tell(worker, "girder_drop", runs=[run]))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._telling.add(log_failure(task, logger, "Telling Dask of a job"))
        task.add_done_callback(self._telling.discard)

    async def _tell(self, worker: str, what: str, **whom: list[str]) -> Any:
        try:
            return await getattr(self._scheduler.rpc(worker), what)(**whom)
        except Exception as e:  # noqa: BLE001 - whatever the worker raised comes back here
            named = ", ".join(itertools.chain(*whom.values()))
            logger.warning("Worker %s was not told to stop %s: %r", worker, named, e)
            return None

    async def flush(self, worker: str) -> None:
        """Wait until what runs on a worker have said is here, if that does not take long."""
        try:
            flushed = self._scheduler.rpc(worker).girder_flush()
            await asyncio.wait_for(flushed, _FLUSH_TIME)
        except Exception as e:  # noqa: BLE001 - as above
            logger.warning("Worker %s may have said more than has arrived here: %r", worker, e)

    async def unstarted(self, worker: str) -> Sequence[str]:
        """Return the keys with which a worker that is to begin nothing more has not begun.

        If it does not answer that is not known of any.
        """
        try:
            asked = self._scheduler.rpc(worker).girder_not_begun()
            keys: Sequence[str] = await asyncio.wait_for(asked, _FLUSH_TIME)
        except Exception as e:  # noqa: BLE001 - as above
            logger.warning("Worker %s does not say what it has not begun: %r", worker, e)
            return ()
        return keys

    def set_attempt(self, key: str, attempt: int) -> None:
        """Tell the next run of a key which attempt it is. This is within a transition."""
        ts = self._scheduler.tasks.get(key)
        if ts is not None:
            ts.annotations = {**(ts.annotations or {}), ATTEMPT_ANNOTATION: attempt}

    def unrunnable(self) -> dict[str, str]:
        """Return why keys wait for which there is no worker, by key."""
        scheduler = self._scheduler
        # Without any worker, tasks are queued as they are when all are busy.
        queued = () if scheduler.running else scheduler.queued
        reasons: dict[Any, str] = {}
        found = {}
        for ts in itertools.chain(queued, scheduler.unrunnable):
            needs = tuple(sorted((ts.resource_restrictions or {}).items()))
            if needs not in reasons:
                reasons[needs] = shortage(scheduler, dict(needs))
            if reasons[needs]:
                found[str(ts.key)] = reasons[needs]
        return found

    def loss_reason(self, worker: str) -> str:
        """Say why a worker was lost; empty if that is not known."""
        return self.losses.why(worker)

    def has(self, key: str) -> bool:
        """Say whether the scheduler has a key, or it waits for a connection."""
        return key in self._scheduler.tasks or key in self._waiting

    def assigned_to(self, key: str) -> str | None:
        """Return the address of the worker that a key is placed on."""
        ts = self._scheduler.tasks.get(key)
        ws = ts.processing_on if ts is not None else None
        return None if ws is None else str(ws.address)

    async def close(self) -> None:
        """Be a client no more."""
        if self._look is not None:
            self._look.cancel()
        if self._client is not None:
            await self._client.close()
