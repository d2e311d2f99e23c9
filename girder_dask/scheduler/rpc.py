"""What Girder, workers and notebooks ask the scheduler: its remote procedures."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from girder_dask.errors import GirderError
from girder_dask.protocol.messages import JobEvent, JobSpec
from girder_dask.scheduler.dask_cluster import DaskCluster
from girder_dask.scheduler.dispatcher import Dispatcher
from girder_dask.scheduler.recorder import Recorder
from girder_dask.utils.bounded_dict import BoundedDict

__all__ = ["RpcHandlers"]

logger = logging.getLogger(__name__)

# How many workers' outboxes are remembered, by the number of their last batch and its answer.
_MOST_OUTBOXES = 10_000
# How long a worker is kept waiting that asks for something.
_ANSWER_TIME = 20.0
# How long a job that is to be pinned may take to arrive here.
_PIN_TIME = 5.0
_PIN_PAUSE = 0.05
# How long it may take to see what of canceled jobs has begun, and how often that is looked at.
_CANCEL_TIME = 1.0
_LOOK = 0.01


class RpcHandlers:
    """The remote procedures of a scheduler. To be used on its event loop.

    Parameters
    ----------
    scheduler
        The id of this run of the scheduler.
    dispatcher
        The jobs that are in hand.
    recorder
        What tells Girder of them.
    cluster
        Dask, as the dispatcher sees it.
    api_url
        Girder's REST API, for ``girder-dask doctor``.
    check_credential
        Asks Girder what the scheduler's credential is good for; raises GirderError.
    """

    def __init__(
        self,
        scheduler: str,
        dispatcher: Dispatcher,
        recorder: Recorder,
        cluster: DaskCluster,
        api_url: str | None,
        check_credential: Callable[[], Awaitable[Any]],
    ) -> None:
        self._id = scheduler
        self._dispatcher = dispatcher
        self._recorder = recorder
        self._cluster = cluster
        self._api_url = api_url
        self._check_credential = check_credential
        #: Why Girder could not be asked for jobs the last time, None if it could.
        self.claim_error: str | None = None
        self._batches = BoundedDict[str, tuple[int, list[str]]](_MOST_OUTBOXES)

    @property
    def handlers(self) -> dict[str, Callable[..., Any]]:
        """The remote procedures, by their names."""
        rpc = (
            self.girder_hello,
            self.girder_submit,
            self.girder_cancel,
            self.girder_events,
            self.girder_room,
            self.girder_may_begin,
            self.girder_pin,
            self.girder_status,
        )
        return {procedure.__name__: procedure for procedure in rpc}

    async def girder_hello(self) -> dict[str, Any]:
        """Say which run of a scheduler this is."""
        return {"scheduler": self._id}

    async def girder_submit(self, scheduler: str, specs: list[dict[str, Any]]) -> dict[str, Any]:
        """Take jobs in hand that are this scheduler's. The answer is the acknowledgement."""
        if scheduler != self._id:
            return {"accepted": []}
        return {"accepted": self._dispatcher.accept(JobSpec.from_wires(specs))}

    async def girder_cancel(self, jobs: list[str]) -> dict[str, Any]:
        """End jobs. Return those that have begun, and those of which nobody can say it in a second.

        If it does not take longer, Girder has heard by then that they have begun.
        """
        self._dispatcher.cancel(jobs)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._settled(jobs), _CANCEL_TIME)
        return {"begun": list(self._dispatcher.started(jobs))}

    async def _settled(self, jobs: Sequence[str]) -> None:
        """Wait until it is known which of canceled jobs have begun, and Girder knows that too."""
        doubtful = self._dispatcher.possibly_started(jobs)
        while doubtful:
            await asyncio.sleep(_LOOK)
            doubtful = self._dispatcher.possibly_started(doubtful)
        begun = self._dispatcher.started(jobs).items()
        await self._recorder.until(
            lambda: not any(self._recorder.has_pending_state(*b) for b in begun)
        )

    async def girder_events(
        self, outbox: str, batch: int, events: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Take in events of runs. A batch that comes again is acknowledged again, and no more."""
        last, dropped = self._batches.get(outbox, (0, []))
        if batch > last:
            read = JobEvent.from_wires(events)
            dropped = [e.run for e in read if not self._hear(e) and e.run is not None]
            self._batches[outbox] = batch, dropped
        await self._recorder.room()
        return {"dropped": dropped}

    def _hear(self, event: JobEvent) -> bool:
        try:
            return self._dispatcher.on_run_event(event)
        except Exception:
            # Else all that came with it would be lost.
            logger.exception("An event of job %s could not be taken in: %r", event.id, event)
            return True

    async def girder_room(self, job: str) -> bool:
        """Wait until Girder has taken most of the output of a job. False if that takes long."""
        try:
            await asyncio.wait_for(self._recorder.room_for(job), _ANSWER_TIME)
        except asyncio.TimeoutError:
            return False
        return True

    async def girder_may_begin(self, key: str, attempt: int) -> bool | None:
        """Wait until it is known whether an attempt may begin. None if that takes long."""
        may_start = partial(self._dispatcher.attempts.may_start, key, attempt)
        known = self._recorder.until(lambda: may_start() is not None)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(known, _ANSWER_TIME)
        return may_start()

    async def girder_pin(self, jobs: list[str], client: str) -> dict[str, str]:
        """Make a Dask client want the values of jobs; return the keys of those known here.

        A job that was just submitted may not have arrived, so it is waited for a little.
        """
        deadline = asyncio.get_running_loop().time() + _PIN_TIME
        while True:
            keys = {job_id: self._dispatcher.key_of(job_id) for job_id in jobs}
            found = {job_id: key for job_id, key in keys.items() if key is not None}
            missing = [i for i in jobs if i not in found and not self._dispatcher.has(i)]
            if not missing or asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(_PIN_PAUSE)
        for key in found.values():
            self._cluster.pin(key, client)
        return found

    async def girder_status(self) -> dict[str, Any]:
        """Return what ``girder-dask doctor`` asks of a scheduler."""

        from girder_dask.diagnostics import describe_process

        facts = await asyncio.to_thread(describe_process, self._api_url)
        girder = credential = None
        try:
            girder = await self._check_credential()
        except GirderError as e:
            credential = str(e)
        return {
            **facts,
            "id": self._id,
            "jobs": len(self._dispatcher),
            "waiting": self._recorder.waiting,
            "kept": len(self._dispatcher.retained),
            "kept_bytes": self._dispatcher.retained.nbytes,
            "requests": self._recorder.requests,
            "updates": self._recorder.updates,
            "error": self._recorder.error,
            "claim_error": self.claim_error,
            "credential_error": credential,
            "girder": girder,
        }
