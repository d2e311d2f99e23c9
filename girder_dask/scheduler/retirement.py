"""Workers that leave in good order: their runs get time to end, or begin again elsewhere.

Dask's ``retire_workers`` moves values away and takes running tasks from the worker at once. The
same name is a remote procedure here, which gives runs their time first; clients, adaptive
clusters and workers whose ``--lifetime`` is over all call it. A nanny, or a worker without
one, that is asked to end calls ``girder_leave``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

from distributed import Scheduler, Status

from girder_dask.scheduler.cluster import Cluster
from girder_dask.scheduler.dispatcher import Dispatcher

__all__ = ["WorkerRetirement"]

logger = logging.getLogger(__name__)

_PAUSE = 0.1
_STIMULUS = "girder-dask-leave"


class WorkerRetirement:
    """The workers of a scheduler that are about to leave.

    Parameters
    ----------
    scheduler
        Dask's scheduler.
    dispatcher
        The jobs that are in hand.
    cluster
        Dask, as the dispatcher sees it.
    grace
        Seconds that the runs on a worker which leaves have to end.
    """

    def __init__(
        self, scheduler: Scheduler, dispatcher: Dispatcher, cluster: Cluster, grace: float
    ) -> None:
        self._scheduler = scheduler
        self._dispatcher = dispatcher
        self._cluster = cluster
        self._grace = grace
        self._retire: Callable[..., Awaitable[Mapping[str, Any]]] = scheduler.retire_workers
        self._workers: set[str] = set()
        self._open = True

    def __contains__(self, worker: object) -> bool:
        return worker in self._workers

    @property
    def handlers(self) -> dict[str, Callable[..., Any]]:
        """The remote procedures, by their names."""
        return {"retire_workers": self.retire_workers, "girder_leave": self.girder_leave}

    def joined(self, worker: str) -> None:
        """Take note that a worker is there, perhaps again."""
        self._workers.discard(worker)

    async def retire_workers(
        self,
        workers: Iterable[str] | None = None,
        names: Iterable[Any] | None = None,
        close_workers: bool = False,
        remove: bool = True,
        stimulus_id: str | None = None,
        **choice: Any,
    ) -> Mapping[str, Any]:
        """Do as Dask's own procedure does, when the runs on these workers have had their time.

        Parameters
        ----------
        workers, names, **choice
            Which workers: their addresses, their names, or what Dask chooses them by.
        close_workers, remove, stimulus_id
            What Dask's own takes.
        """
        addresses = self._chosen(workers, names, choice)
        before = {a: self._scheduler.workers[a].status for a in addresses}
        if self._open:
            await self._leave(addresses)
        retired = await self._retire(
            workers=addresses,
            close_workers=close_workers,
            remove=remove,
            stimulus_id=stimulus_id or _STIMULUS,
        )
        for address in set(addresses) - retired.keys():  # Dask could not move its values away
            self._set_status(address, before[address])
            self._workers.discard(address)
        return retired

    async def girder_leave(
        self,
        worker: str,
        stuck: Collection[str] = (),
        grace: float | None = None,
        remove: bool = True,
    ) -> None:
        """Have a worker leave that is going to end.

        Parameters
        ----------
        worker
            Its address.
        stuck
            Jobs that are not waited for.
        grace
            Seconds that its runs have, by default those of this scheduler.
        remove
            Whether it is the scheduler's no longer when this returns.
        """
        if not self._open or worker not in self._scheduler.workers:
            return
        await self._leave([worker], stuck, grace)
        if worker in self._scheduler.workers:
            await self._retire(workers=[worker], remove=remove, stimulus_id=_STIMULUS)
        if remove:  # also if there is no other worker to take its values
            await self._scheduler.remove_worker(
                worker, expected=True, close=False, stimulus_id=_STIMULUS
            )

    async def close(self) -> None:
        """Give all runs their time, as the scheduler itself ends. No new one begins."""
        self._open = False
        workers = list(self._scheduler.workers)
        await self._mark(workers)
        await self._drain(workers, self._grace)
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
        await self._mark(workers)
        await self._drain(workers, self._grace if grace is None else grace, stuck)
        await self._flush(workers)
        for worker in workers:
            keys = [str(ts.key) for ts in self._processing(worker)]
            for key in keys:  # it may have stolen some of them, of which no transition has told
                self._dispatcher.on_assigned(key, worker)
            self._release(keys, stuck)

    async def _mark(self, workers: Collection[str]) -> None:
        """Have workers begin nothing more. What is left with them then has begun."""
        self._workers.update(workers)
        for address in workers:
            self._set_status(address, Status.closing_gracefully)
        await asyncio.gather(*(self._take_back(address) for address in workers))

    def _set_status(self, address: str, status: Status) -> None:
        ws = self._scheduler.workers.get(address)
        if ws is None or ws.status == status:
            return
        # As Dask does it: here at once, and the worker follows.
        self._scheduler.handle_worker_status_change(status, ws, _STIMULUS)
        message = {"op": "worker-status-change", "status": status.name, "stimulus_id": _STIMULUS}
        self._scheduler.worker_send(address, message)

    async def _take_back(self, worker: str) -> None:
        """Take from a worker what it has not begun, and will not, so that it runs elsewhere."""
        if not self._processing(worker):
            return
        unstarted = set(await self._cluster.unstarted(worker))
        keys = unstarted.intersection(str(ts.key) for ts in self._processing(worker))
        for key in keys:
            self._dispatcher.on_unstarted(key)
        self._release(keys)

    def _processing(self, worker: str) -> Collection[Any]:
        """Return Dask's accounts of the tasks that it has placed on a worker."""
        ws = self._scheduler.workers.get(worker)
        return ws.processing if ws is not None else ()

    def _release(self, keys: Iterable[str], stuck: Collection[str] = ()) -> None:
        """Have jobs run elsewhere that are placed on a worker which leaves, but those stuck."""
        jobs = [job for key in keys if (job := self._dispatcher.jobs.get(key))]
        free = [
            job.spec.key
            for job in jobs
            if not (job.canceled or job.end_reported or job.spec.id in stuck)
        ]
        self._scheduler.transitions(dict.fromkeys(free, "released"), _STIMULUS)

    async def _drain(
        self, workers: Collection[str], grace: float, stuck: Collection[str] = ()
    ) -> None:
        """Wait until nothing runs on workers, but for at most ``grace`` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        while loop.time() < deadline:
            if not self._at_work(workers) - set(stuck):
                return
            await asyncio.sleep(_PAUSE)

    async def _flush(self, workers: Collection[str]) -> None:
        """Have what was said on workers arrive here."""
        busy = [worker for worker in workers if self._at_work([worker])]
        await asyncio.gather(*(self._cluster.flush(worker) for worker in busy))

    def _at_work(self, workers: Collection[str]) -> set[str]:
        """Return the jobs of which something may run on workers that are still there."""
        there = {worker for worker in workers if worker in self._scheduler.workers}
        placed = {str(ts.key) for worker in there for ts in self._processing(worker)}
        return {
            job.spec.id
            for key, job in self._dispatcher.jobs.items()
            if (key in placed or (job.run is not None and job.worker in there)) and not job.finished
        }
