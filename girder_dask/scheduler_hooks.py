"""What girder_dask does in the scheduler: ``dask scheduler --preload girder_dask.scheduler_hooks``.

The plugin is thin. It passes Dask's transitions, the workers' events and what is submitted
to a :class:`~girder_dask.dispatch.Dispatcher`, which keeps the jobs, and a
:class:`~girder_dask.recorder.Recorder`, which tells Girder. Nothing here waits on the
scheduler's event loop: requests to Girder are made in threads.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from distributed import Client, Scheduler, fire_and_forget
from distributed.diagnostics.plugin import SchedulerPlugin

from girder_dask import config
from girder_dask._version import __version__
from girder_dask.dispatch import Dispatcher
from girder_dask.errors import GirderError
from girder_dask.girder_api import GirderApi
from girder_dask.jobs import JobEvent, JobSpec
from girder_dask.recorder import Recorder
from girder_dask.worker_hooks import PLUGIN_NAME, GirderWorkerPlugin, run_job

__all__ = ["GirderSchedulerPlugin", "dask_setup"]

logger = logging.getLogger(__name__)

_CLOSING_TIME = 10.0
_CLAIM_LIMIT = 500
# How long the account of a run is waited for when Dask has seen its end, and how often
# it is looked whether its worker is still there.
_ACCOUNT_TIME = 30.0
_ACCOUNT_PAUSE = 0.5


class GirderSchedulerPlugin(SchedulerPlugin):
    """Runs the jobs of one Girder.

    Parameters
    ----------
    api_url, credential
        Girder's REST API and the scheduler's API key, by default those of Dask's
        configuration (``girder.api-url``, ``girder.credential``).
    """

    name = PLUGIN_NAME

    def __init__(self, api_url: str | None = None, credential: str | None = None) -> None:
        self.id = uuid.uuid4().hex
        self._api_url = api_url or config.get("api-url")
        self._credential = credential or config.credential()
        self._tasks: list[asyncio.Task[None]] = []
        self._accounts: set[asyncio.Task[None]] = set()
        self._batches: dict[str, int] = {}

    async def start(self, scheduler: Scheduler) -> None:
        """Install the handlers and begin to work; called when the scheduler listens."""
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._cluster = _DaskCluster(scheduler, self._loop)
        self.recorder = Recorder(
            self._post,
            self._verdict,
            interval=config.seconds("scheduler.flush-interval"),
            batch_size=int(config.get("scheduler.batch-size")),
            buffer=config.nbytes("scheduler.buffer"),
            retry_delay=config.seconds("scheduler.retry-delay"),
            retry_delay_max=config.seconds("scheduler.retry-delay-max"),
        )
        self.dispatcher = Dispatcher(self._cluster, self.recorder.record, self.recorder.forget)
        # Each connection is used by one thread, so each has one.
        self._threads = {
            name: ThreadPoolExecutor(1, thread_name_prefix=f"girder-dask-{name}")
            for name in ("updates", "claims")
        }
        self._apis = {name: self._api() for name in self._threads}
        scheduler.handlers |= {
            "girder_submit": self.girder_submit,
            "girder_cancel": self.girder_cancel,
            "girder_events": self.girder_events,
            "girder_status": self.girder_status,
        }
        await scheduler.register_worker_plugin(
            comm=None, plugin=pickle.dumps(GirderWorkerPlugin()), name=PLUGIN_NAME, idempotent=False
        )
        self._tasks = [
            self._loop.create_task(self._cluster.connect(), name="girder-dask client"),
            self._loop.create_task(self.recorder.run(), name="girder-dask recorder"),
            self._loop.create_task(self._pull(), name="girder-dask pull"),
        ]
        logger.info("girder_dask %s runs the jobs of %s", __version__, self._api_url)

    def _api(self) -> GirderApi:
        timeout = config.seconds("scheduler.request-timeout")
        return GirderApi(self._api_url or "", self._credential, timeout=timeout)

    async def before_close(self) -> None:
        """Tell Girder what it has not heard, for a limited time, and stop."""
        if not await self.recorder.flush(_CLOSING_TIME):
            logger.warning(
                "The scheduler closes with %d jobs of which Girder has not heard all",
                self.recorder.waiting,
            )
        for task in (*self._tasks, *self._accounts):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._cluster.close()
        for name, threads in self._threads.items():
            threads.shutdown(wait=False, cancel_futures=True)
            self._apis[name].close()

    # -- Dask ---------------------------------------------------------------------------------

    def transition(self, key: Any, start: str, finish: str, *_args: Any, **details: Any) -> None:
        """Pass what Dask does with our keys on. Only look-ups for keys that are not ours."""
        if key not in self.dispatcher:
            return
        worker = details.get("worker")
        if finish == "processing":
            self.dispatcher.placed(key, self._cluster.placed_on(key) or "")
        elif finish in ("memory", "erred"):
            self.dispatcher.ended(key, worker)
            if finish == "erred":
                self._unless_told(key, worker, self.dispatcher.failed, _reason(details))
        elif finish == "forgotten":
            self._unless_told(key, worker, self.dispatcher.forgotten)
        elif start == "processing" and finish == "released":
            alive = worker in self._scheduler.workers
            self.dispatcher.taken_away(key, worker, alive=alive)

    def _unless_told(
        self, key: str, worker: str | None, then: Callable[..., None], *arguments: Any
    ) -> None:
        """Act on an end that Dask saw, unless the run's own account of it still comes.

        The account travels beside Dask's message, so it may be a moment later; it can no
        longer come when the worker is gone.
        """
        task = self._loop.create_task(self._await_account(key, worker))
        self._accounts.add(task)

        def act(finished: asyncio.Task[None]) -> None:
            self._accounts.discard(finished)
            if not finished.cancelled() and self.dispatcher.is_open(key):
                then(key, *arguments)

        task.add_done_callback(act)

    async def _await_account(self, key: str, worker: str | None) -> None:
        deadline = self._loop.time() + _ACCOUNT_TIME
        while self.dispatcher.is_open(key) and self._loop.time() < deadline:
            await asyncio.sleep(_ACCOUNT_PAUSE)
            if worker is not None and worker not in self._scheduler.workers:
                return

    # -- Girder -------------------------------------------------------------------------------

    async def _post(self, updates: list[dict[str, Any]]) -> Mapping[str, list[str]]:
        return await self._loop.run_in_executor(
            self._threads["updates"], self._apis["updates"].update, self.id, updates
        )

    def _verdict(self, job_id: str, kind: str) -> None:
        self.dispatcher.verdict(job_id, kind)

    async def _pull(self) -> None:
        """Ask Girder for jobs that this scheduler lacks: at start, and on a period."""
        interval = config.seconds("scheduler.pull-interval")
        delay = config.seconds("scheduler.retry-delay")
        complaint = None
        while True:
            try:
                count = await self._claim()
                wait = 0.0 if count else interval
                delay, complaint = config.seconds("scheduler.retry-delay"), None
            except GirderError as e:
                if str(e) != complaint:
                    logger.warning("Cannot ask Girder for unfinished jobs: %s", e)
                    complaint = str(e)
                wait, delay = delay, min(delay * 2, interval)
            await asyncio.sleep(wait)

    async def _claim(self) -> int:
        answer = await self._loop.run_in_executor(
            self._threads["claims"], self._apis["claims"].claim, self.id, _CLAIM_LIMIT
        )
        self.dispatcher.cancel(answer["cancel"])
        specs = [JobSpec.from_wire(wire) for wire in answer["specs"]]
        if specs:
            logger.info("Girder had %d unfinished jobs for this scheduler", len(specs))
            self.dispatcher.accept(specs)
        return len(specs)

    # -- remote procedures --------------------------------------------------------------------

    async def girder_submit(self, specs: list[dict[str, Any]]) -> dict[str, Any]:
        """Take jobs in hand. The answer is the acknowledgement."""
        return {"accepted": self.dispatcher.accept([JobSpec.from_wire(wire) for wire in specs])}

    async def girder_cancel(self, jobs: list[str]) -> dict[str, Any]:
        """End jobs."""
        self.dispatcher.cancel(jobs)
        return {}

    async def girder_events(
        self, outbox: str, batch: int, events: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Take in events of runs. A batch that comes again is acknowledged again, and no more."""
        dropped: list[str] = []
        if batch > self._batches.get(outbox, 0):
            read = [JobEvent.from_wire(wire) for wire in events]
            self._batches[outbox] = batch
            dropped = [
                event.run
                for event in read
                if not self.dispatcher.hear(event) and event.run is not None
            ]
        await self.recorder.room()
        return {"dropped": dropped}

    async def girder_status(self) -> dict[str, Any]:
        """Return what ``girder-dask doctor`` asks of a scheduler."""
        from girder_dask.facts import gather

        facts = await asyncio.to_thread(gather, self._api_url)
        girder = credential = None
        try:
            girder = await self._loop.run_in_executor(
                self._threads["claims"], self._apis["claims"].check_credential
            )
        except GirderError as e:
            credential = str(e)
        return {
            **facts,
            "id": self.id,
            "jobs": len(self.dispatcher),
            "waiting": self.recorder.waiting,
            "requests": self.recorder.requests,
            "updates": self.recorder.updates,
            "error": self.recorder.error,
            "credential_error": credential,
            "girder": girder,
        }


class _DaskCluster:
    """The dispatcher's view of a Dask cluster, from inside its scheduler."""

    def __init__(self, scheduler: Scheduler, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduler = scheduler
        self._loop = loop
        self._client: Client | None = None
        self._waiting: list[JobSpec] = []
        self._stops: set[asyncio.Task[None]] = set()

    def submit(self, specs: Sequence[JobSpec]) -> None:
        self._waiting.extend(specs)
        if self._client is not None:
            self._send(self._client)

    async def connect(self) -> None:
        """Become a client of the scheduler that this is in, and submit what waits."""
        self._client = await Client(
            self._scheduler.address,
            asynchronous=True,
            security=self._scheduler.security,
            set_as_default=False,
            name="girder-dask",
        )
        self._send(self._client)

    def _send(self, client: Client) -> None:
        specs, self._waiting = self._waiting, []
        alike: dict[Any, list[JobSpec]] = defaultdict(list)
        for spec in specs:
            resources = tuple(sorted((spec.resources or {}).items()))
            alike[spec.priority, resources, spec.retries].append(spec)
        for (priority, resources, retries), group in alike.items():
            futures = client.map(
                run_job,
                group,
                key=[spec.key for spec in group],
                priority=priority,
                resources=dict(resources) or None,
                retries=retries or None,
                pure=False,
            )
            # Wanted until they have ended, then released by Dask itself.
            fire_and_forget(futures)

    def drop(self, keys: Sequence[str]) -> None:
        # Not now: this may be within a transition.
        self._loop.call_soon(self._release, list(keys))

    def _release(self, keys: list[str]) -> None:
        known = [key for key in keys if key in self._scheduler.tasks]
        for client in ("fire-and-forget", self._client.id if self._client else ""):
            self._scheduler.client_releases_keys(
                known, client, stimulus_id=f"girder-dask-drop-{uuid.uuid4().hex}"
            )

    def stop(self, worker: str, jobs: Sequence[str]) -> None:
        task = self._loop.create_task(self._stop(worker, list(jobs)))
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)

    async def _stop(self, worker: str, jobs: list[str]) -> None:
        try:
            await self._scheduler.rpc(worker).girder_cancel(jobs=jobs)
        except OSError as e:
            logger.info("Worker %s was not told to stop %s (%s)", worker, ", ".join(jobs), e)

    def placed_on(self, key: str) -> str | None:
        ts = self._scheduler.tasks.get(key)
        ws = ts.processing_on if ts is not None else None
        return None if ws is None else str(ws.address)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()


def _reason(details: Mapping[str, Any]) -> str:
    """Say why Dask gave up on a task, from the arguments of its transition."""
    text = details.get("exception_text")
    if text:
        return f"Dask could not run the task: {text}"
    worker = details.get("worker")
    where = f" The last was {worker}." if worker else ""
    return (
        "The task was lost with every worker that it ran on, so it is not tried again."
        f"{where} Look for a lack of memory or a crash in the workers' logs."
    )


def dask_setup(scheduler: Scheduler) -> None:
    """Install the plugin. Dask calls this for ``--preload`` and for its ``preload`` setting."""
    scheduler.add_plugin(GirderSchedulerPlugin())
