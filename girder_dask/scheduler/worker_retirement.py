"""Draining of workers before they leave: their runs may end, or begin again elsewhere.

Dask's ``retire_workers`` moves results away and takes running tasks from the worker at once. The
procedure of the same name here drains the worker first; clients, adaptive clusters and workers
whose ``--lifetime`` is over all call it. A nanny, or a worker without one, calls ``girder_leave``
when it is asked to end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from distributed import Scheduler, Status

from girder_dask.scheduler.cluster_interface import Cluster
from girder_dask.scheduler.dispatcher import Dispatcher
from girder_dask.scheduler.job_state import JobState

__all__ = ["WorkerRetirement"]

logger = logging.getLogger(__name__)

_DRAIN_CHECK_INTERVAL_S = 0.1
_STIMULUS = "girder-dask-leave"


class WorkerRetirement:
    """The workers of a scheduler that are leaving.

    Parameters
    ----------
    scheduler
        Dask's scheduler.
    dispatcher
        Handles the events of jobs.
    cluster
        Dask, as job handling sees it.
    grace_s
        Seconds that the runs on a leaving worker have to end.
    """

    def __init__(
        self, scheduler: Scheduler, dispatcher: Dispatcher, cluster: Cluster, grace_s: float
    ) -> None:
        self._scheduler = scheduler
        self._dispatcher = dispatcher
        self._jobs = dispatcher.jobs
        self._cluster = cluster
        self._grace_s = grace_s
        self._retire: Callable[..., Awaitable[Mapping[str, Any]]] = scheduler.retire_workers
        self._leaving: set[str] = set()
        self._is_closing = False

    def __contains__(self, worker: object) -> bool:
        return worker in self._leaving

    @property
    def handlers(self) -> dict[str, Callable[..., Any]]:
        """The remote procedures, by name."""
        return {"retire_workers": self.retire_workers, "girder_leave": self.girder_leave}

    def on_joined(self, worker: str) -> None:
        """Record that a worker has joined, perhaps again."""
        self._leaving.discard(worker)

    async def retire_workers(
        self,
        workers: Iterable[str] | None = None,
        names: Iterable[Any] | None = None,
        close_workers: bool = False,
        remove: bool = True,
        stimulus_id: str | None = None,
        **choice: Any,
    ) -> Mapping[str, Any]:
        """Drain workers, then retire them as Dask's own procedure does.

        Parameters
        ----------
        workers, names, **choice
            Which workers: their addresses, their names, or the criteria of Dask.
        close_workers, remove, stimulus_id
            As for Dask's own procedure.
        """
        addresses = self._chosen(workers, names, choice)
        before = {a: self._scheduler.workers[a].status for a in addresses}
        if not self._is_closing:
            await self._leave(addresses)
        retired = await self._retire(
            workers=addresses,
            close_workers=close_workers,
            remove=remove,
            stimulus_id=stimulus_id or _STIMULUS,
        )
        for address in set(addresses) - retired.keys():  # Dask could not move its results away
            self._set_status(address, before[address])
            self._leaving.discard(address)
        return retired

    async def girder_leave(
        self,
        worker: str,
        stuck: Collection[str] = (),
        grace: float | None = None,
        remove: bool = True,
    ) -> None:
        """Drain a worker that is about to end.

        Parameters
        ----------
        worker
            Its address.
        stuck
            Jobs that are not waited for.
        grace
            Seconds that its runs have, by default those of this scheduler.
        remove
            Whether to remove it from the scheduler before this returns.
        """
        if self._is_closing or worker not in self._scheduler.workers:
            return
        await self._leave([worker], stuck, grace)
        if worker in self._scheduler.workers:
            await self._retire(workers=[worker], remove=remove, stimulus_id=_STIMULUS)
        if remove:  # even if no other worker can take its results
            await self._scheduler.remove_worker(
                worker, expected=True, close=False, stimulus_id=_STIMULUS
            )

    async def close(self) -> None:
        """Drain all workers because the scheduler is closing. No new run starts."""
        self._is_closing = True
        workers = list(self._scheduler.workers)
        await self._stop_starting(workers)
        await self._drain(workers, self._grace_s)
        await self._flush(workers)

    def _chosen(
        self,
        workers: Iterable[str] | None,
        names: Iterable[Any] | None,
        choice: Mapping[str, Any],
    ) -> list[str]:
        known = self._scheduler.workers
        if workers is not None:
            return [address for address in workers if address in known]
        if names is not None:
            wanted = {str(name) for name in names}
            return [address for address, ws in known.items() if str(ws.name) in wanted]
        return list(self._scheduler.workers_to_close(**choice))

    async def _leave(
        self, workers: Collection[str], stuck: Collection[str] = (), grace: float | None = None
    ) -> None:
        if not workers:
            return
        logger.info("Workers are leaving: %s", ", ".join(workers))
        await self._stop_starting(workers)
        await self._drain(workers, self._grace_s if grace is None else grace, stuck)
        await self._flush(workers)
        for worker in workers:
            keys = self._assigned_keys(worker)
            for key in keys:  # the worker may have stolen some without any transition
                self._dispatcher.on_assigned(key, worker)
            self._run_elsewhere(keys, stuck)

    async def _stop_starting(self, workers: Collection[str]) -> None:
        """Stop workers from starting tasks. The tasks that remain with them have started."""
        self._leaving.update(workers)
        for address in workers:
            self._set_status(address, Status.closing_gracefully)
        await asyncio.gather(*(self._take_back(address) for address in workers))

    def _set_status(self, address: str, status: Status) -> None:
        ws = self._scheduler.workers.get(address)
        if ws is None or ws.status == status:
            return
        # Dask does the same: the status changes here at once, and the worker follows.
        self._scheduler.handle_worker_status_change(status, ws, _STIMULUS)
        message = {"op": "worker-status-change", "status": status.name, "stimulus_id": _STIMULUS}
        self._scheduler.worker_send(address, message)

    async def _take_back(self, worker: str) -> None:
        """Take back from a worker what it has not started, so that it runs elsewhere."""
        if not self._assigned_keys(worker):
            return
        unstarted = set(await self._cluster.unstarted(worker))
        keys = unstarted.intersection(self._assigned_keys(worker))
        for key in keys:
            self._dispatcher.on_unstarted(key)
        self._run_elsewhere(keys)

    def _assigned_keys(self, worker: str) -> list[str]:
        """Return the keys of the tasks that Dask has assigned to a worker."""
        ws = self._scheduler.workers.get(worker)
        return [str(ts.key) for ts in ws.processing] if ws is not None else []

    def _run_elsewhere(self, keys: Iterable[str], stuck: Collection[str] = ()) -> None:
        """Have the jobs of a leaving worker run elsewhere, except those that are stuck."""
        jobs = [job for key in keys if (job := self._jobs.by_key(key))]
        free = [
            job.spec.key
            for job in jobs
            if not (job.canceled or job.end_reported or job.spec.id in stuck)
        ]
        self._scheduler.transitions(dict.fromkeys(free, "released"), _STIMULUS)

    async def _drain(
        self, workers: Collection[str], grace_s: float, stuck: Collection[str] = ()
    ) -> None:
        """Wait until nothing runs on workers, but for at most ``grace_s`` seconds."""
        deadline = self._cluster.time() + grace_s
        while self._cluster.time() < deadline:
            if not any(self._is_busy(worker, stuck) for worker in workers):
                return
            await asyncio.sleep(_DRAIN_CHECK_INTERVAL_S)

    async def _flush(self, workers: Collection[str]) -> None:
        """Wait until the events of workers have arrived."""
        busy = [worker for worker in workers if self._is_busy(worker)]
        await asyncio.gather(*(self._cluster.flush(worker) for worker in busy))

    def _is_busy(self, worker: str, stuck: Collection[str] = ()) -> bool:
        """Return True if a connected worker may be running a job that is not stuck."""
        if worker not in self._scheduler.workers:
            return False
        return any(
            not job.finished and job.spec.id not in stuck for job in self._running_on(worker)
        )

    def _running_on(self, worker: str) -> Iterator[JobState]:
        for key in self._assigned_keys(worker):
            job = self._jobs.by_key(key)
            if job is not None:
                yield job
        for job in self._jobs.on_worker(worker):
            if job.run is not None:
                yield job
