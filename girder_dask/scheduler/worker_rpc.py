"""Remote calls from the scheduler to workers, about the runs of jobs."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from distributed import Scheduler

from girder_dask.utils.background import log_failure

__all__ = ["WorkerRpc"]

logger = logging.getLogger(__name__)

# How long a worker may take to send its events, or to name the tasks that it has not started.
_ANSWER_TIMEOUT_S = 3.0


class WorkerRpc:
    """Remote calls to workers. Calls that fail are logged.

    Parameters
    ----------
    scheduler
        Dask's scheduler.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._calls: set[asyncio.Task[None]] = set()

    def cancel_runs(
        self, worker: str, keys: Sequence[str], on_unstarted: Callable[[str, str], None]
    ) -> None:
        """Ask the runs of keys on a worker to stop."""

        async def cancel() -> None:
            for key in await self._call(worker, "girder_cancel", keys=list(keys)) or ():
                on_unstarted(key, worker)

        self.begin(cancel())

    def drop_run(self, worker: str, run: str) -> None:
        """Tell a worker that the events of one of its runs are ignored from now on."""
        self.begin(self._call(worker, "girder_drop", runs=[run]))

    def begin(self, call: Coroutine[Any, Any, None]) -> None:
        """Begin a call that nothing awaits."""
        task = asyncio.get_running_loop().create_task(call)
        self._calls.add(log_failure(task, logger, "Telling Dask of a job"))
        task.add_done_callback(self._calls.discard)

    async def _call(self, worker: str, procedure: str, **targets: list[str]) -> Any:
        try:
            return await getattr(self._scheduler.rpc(worker), procedure)(**targets)
        except Exception as e:  # noqa: BLE001 - any error of the worker arrives here
            named = ", ".join(itertools.chain(*targets.values()))
            logger.warning("Worker %s could not be asked to stop %s: %r", worker, named, e)
            return None

    async def flush(self, worker: str) -> None:
        """Wait until the events of a worker's runs have arrived, up to a few seconds."""
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                await self._scheduler.rpc(worker).girder_flush()
        except Exception as e:  # noqa: BLE001 - as above
            logger.warning("Worker %s may have events that have not arrived: %r", worker, e)

    async def unstarted(self, worker: str) -> Sequence[str]:
        """Return the keys that a draining worker has not started; none if it does not answer."""
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                keys: Sequence[str] = await self._scheduler.rpc(worker).girder_not_begun()
        except Exception as e:  # noqa: BLE001 - as above
            logger.warning("Worker %s did not report what it has not started: %r", worker, e)
            return ()
        return keys
