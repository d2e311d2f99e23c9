"""The remote procedures of the scheduler, for Girder, workers and notebooks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from girder_dask import config
from girder_dask.diagnostics import describe_process
from girder_dask.errors import GirderError
from girder_dask.http.scheduler_api import GirderRequests
from girder_dask.protocol.messages import JobEvent, JobSpec
from girder_dask.protocol.wire_version import WIRE_VERSION, version_conflict
from girder_dask.scheduler.claims import JobClaims
from girder_dask.scheduler.dask_cluster import DaskCluster, WorkerFacts
from girder_dask.scheduler.dispatcher import Dispatcher
from girder_dask.scheduler.event_recorder import Recorder
from girder_dask.scheduler.result_retention import RetainedResults
from girder_dask.utils.bounded_dict import BoundedDict

__all__ = ["RpcHandlers"]

logger = logging.getLogger(__name__)

# The most outboxes of workers whose last batch number and answer are kept.
_MAX_OUTBOXES = 10_000
# How long a worker waits for an answer at most.
_ANSWER_TIMEOUT_S = 20.0
# How long a job that is to be pinned may take to arrive here.
_PIN_TIMEOUT_S = 5.0
_PIN_CHECK_INTERVAL_S = 0.05
# How long it may take to find out which of canceled jobs have started.
_CANCEL_TIMEOUT_S = 1.0
_CANCEL_CHECK_INTERVAL_S = 0.01
# The most jobs that are described of each worker.
_MAX_SHOWN_JOBS = 100


class RpcHandlers:
    """The remote procedures of a scheduler.

    Parameters
    ----------
    scheduler_id
        The id of this run of the scheduler.
    dispatcher
        Handles the events of jobs.
    retained
        The results that stay on the cluster.
    recorder
        Reports events to Girder.
    cluster
        The Dask cluster.
    girder
        Makes requests to Girder.
    claims
        Claims jobs from Girder.
    api_url
        Girder's REST API, for ``girder-dask doctor``.
    """

    def __init__(
        self,
        scheduler_id: str,
        *,
        dispatcher: Dispatcher,
        retained: RetainedResults,
        recorder: Recorder,
        cluster: DaskCluster,
        girder: GirderRequests,
        claims: JobClaims,
        api_url: str | None,
    ) -> None:
        self._id = scheduler_id
        self._dispatcher = dispatcher
        self._jobs = dispatcher.jobs
        self._retained = retained
        self._recorder = recorder
        self._cluster = cluster
        self._girder = girder
        self._claims = claims
        self._api_url = api_url
        self._batches = BoundedDict[str, tuple[int, list[str]]](_MAX_OUTBOXES)

    @property
    def handlers(self) -> dict[str, Callable[..., Any]]:
        """The remote procedures, by name."""
        procedures = (
            self.girder_hello,
            self.girder_submit,
            self.girder_cancel,
            self.girder_events,
            self.girder_room,
            self.girder_pin,
            self.girder_status,
            self.girder_workers,
            self.girder_refused_worker,
        )
        named = {procedure.__name__: procedure for procedure in procedures}
        return {**named, "girder_may_begin": self.may_start}

    # -- Girder -------------------------------------------------------------------------------

    async def girder_hello(self) -> dict[str, Any]:
        """Return the ids of this run and of its Girder, its version, and whether it leads.

        Girder's id and whether it leads are None until Girder has answered.
        """
        lease = self._claims.lease
        return {
            "scheduler": self._id,
            "site": self._claims.site,
            "version": WIRE_VERSION,
            "leads": lease.leads,
            "leader": lease.leader,
        }

    async def girder_submit(self, scheduler: str, specs: list[dict[str, Any]]) -> dict[str, Any]:
        """Accept jobs sent to this run of the scheduler. The answer is the acknowledgement."""
        if scheduler != self._id or self._claims.lease.leads is False:
            return {"accepted": []}
        return {"accepted": self._dispatcher.accept(JobSpec.from_wires(specs))}

    async def girder_cancel(self, jobs: list[str]) -> dict[str, Any]:
        """Cancel jobs; return the ids of those that have started or may have started.

        This waits for up to one second until it is known which have started, and until Girder has
        recorded that.
        """
        self._dispatcher.cancel(jobs)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_TIMEOUT_S):
                await self._settled(jobs)
        return {"begun": list(self._dispatcher.started(jobs))}

    async def _settled(self, jobs: Sequence[str]) -> None:
        """Wait until it is known which of canceled jobs have started, and Girder knows it too."""
        undecided = self._dispatcher.undecided(jobs)
        while undecided:
            await asyncio.sleep(_CANCEL_CHECK_INTERVAL_S)
            undecided = self._dispatcher.undecided(undecided)
        started = self._dispatcher.started(jobs).items()
        is_pending = self._recorder.has_pending_state
        await self._recorder.wait_until(lambda: not any(is_pending(*job) for job in started))

    async def girder_workers(self) -> dict[str, Any]:
        """Return the workers: name, threads, resources, and the first jobs of each."""
        return {"workers": [self._worker(each) for each in self._cluster.workers()]}

    def _worker(self, known: WorkerFacts) -> dict[str, Any]:
        jobs = sorted(self._jobs.on_worker(known.address), key=lambda job: job.spec.id)
        shown = [job for job in jobs if not job.end_reported][:_MAX_SHOWN_JOBS]
        described = [
            (job.run is not None, {"id": job.spec.id, "task": job.spec.task}) for job in shown
        ]
        return {
            "name": known.name,
            "nthreads": known.nthreads,
            "resources": dict(known.resources),
            "active": [each for has_run, each in described if has_run],
            "reserved": [each for has_run, each in described if not has_run],
        }

    async def girder_status(self) -> dict[str, Any]:
        """Return the state of this scheduler for ``girder-dask doctor``."""
        process = await asyncio.to_thread(describe_process, self._api_url)
        girder = credential_error = None
        try:
            girder = await self._girder.check_credential()
        except GirderError as e:
            credential_error = str(e)
        return {
            **process,
            "id": self._id,
            "jobs": len(self._jobs),
            "waiting": self._recorder.waiting,
            "kept": len(self._retained),
            "kept_bytes": self._retained.nbytes,
            "requests": self._recorder.delivery.requests,
            "updates": self._recorder.updates,
            "error": self._recorder.delivery.error,
            "claim_error": self._claims.error,
            "leads": self._claims.lease.leads,
            "leader": self._claims.lease.leader,
            "credential_error": credential_error,
            "credential_file_problem": config.credential_file_problem(),
            "allow_insecure": bool(config.get("security.allow-insecure")),
            "girder": girder,
        }

    # -- workers ------------------------------------------------------------------------------

    async def girder_refused_worker(self, version: int) -> None:
        """Record that a worker has left because it cannot read the messages of this scheduler."""
        conflict = version_conflict(version, "on the workers", "on the scheduler")
        if conflict is not None:
            self._cluster.losses.on_refused(f"those that try are refused: {conflict}")

    async def girder_events(
        self, outbox: str, batch: int, events: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Handle a batch of events of runs. A repeated batch is only acknowledged again."""
        last, dropped = self._batches.get(outbox, (0, []))
        if batch > last:
            parsed = JobEvent.from_wires(events)
            dropped = [e.run for e in parsed if not self._handle(e) and e.run is not None]
            self._batches[outbox] = batch, dropped
        await self._recorder.room()
        return {"dropped": dropped}

    def _handle(self, event: JobEvent) -> bool:
        try:
            return self._dispatcher.on_run_event(event)
        except Exception:
            # Otherwise the rest of the batch would be lost.
            logger.exception("An event of job %s could not be handled: %r", event.id, event)
            return True

    async def girder_room(self, job: str) -> bool:
        """Wait until Girder has taken most of a job's output. Return False if that takes long."""
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                await self._recorder.room_for(job)
        except TimeoutError:
            return False
        return True

    async def may_start(self, key: str, attempt: int) -> bool | None:
        """Return True if an attempt may start, once that is known; None if that takes long."""
        may_start = partial(self._jobs.may_start, key, attempt)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                await self._recorder.wait_until(lambda: may_start() is not None)
        return may_start()

    # -- notebooks ----------------------------------------------------------------------------

    async def girder_pin(self, jobs: list[str], client: str, wait: bool = True) -> dict[str, str]:
        """Make a Dask client want the results of jobs; return the keys of those known here.

        A job that was just submitted may not have arrived yet, so it is waited for. A client that
        knows from Girder that the jobs have ended does not ``wait``.
        """
        deadline = self._cluster.time() + (_PIN_TIMEOUT_S if wait else 0.0)
        while True:
            keys = {job_id: self._dispatcher.key_of(job_id) for job_id in jobs}
            found = {job_id: key for job_id, key in keys.items() if key is not None}
            missing = [i for i in jobs if i not in found and i not in self._jobs]
            if not missing or self._cluster.time() >= deadline:
                break
            await asyncio.sleep(_PIN_CHECK_INTERVAL_S)
        for key in found.values():
            self._cluster.pin(key, client)
        return found
