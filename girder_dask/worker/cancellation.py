"""How runs on a worker are stopped: told, then interrupted, and what is said if that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from girder_dask.utils.background import Guard, log_failure
from girder_dask.worker.run.control import RunControl

__all__ = ["RunCanceller"]

logger = logging.getLogger(__name__)

# A run that ignores an interruption is interrupted again after the grace, or after this.
_LEAST_PAUSE = 1.0
# At the end of the worker: how long before the last moment the processes of runs are killed.
_KILL_TIME = 0.5
# How many keys are remembered that are not to be begun with.
_MOST_REFUSED = 10_000


class RunCanceller:
    """Stops runs. To be used on the worker's event loop.

    Parameters
    ----------
    runs
        Those that go on, by their ids.
    refused
        The keys that are not to be begun with any more.
    grace
        Seconds that a run which is told to stop has before it is interrupted.
    restart_after
        Seconds after which a run that does not end is given up, None for never.
    give_up
        Called with such a run.
    """

    def __init__(
        self,
        runs: Mapping[str, RunControl],
        refused: dict[str, None],
        grace: float,
        restart_after: float | None = None,
        give_up: Callable[[RunControl], None] = lambda _run: None,
    ) -> None:
        self._runs = runs
        self._refused = refused
        self._grace = grace
        self._restart_after = restart_after
        self._give_up = give_up
        self._tasks: dict[RunControl, asyncio.Task[None]] = {}
        self._limits: dict[RunControl, asyncio.TimerHandle] = {}
        # So that a run of which one step fails is stopped by the others, and others are, too.
        self._guard = Guard(logger, "Stopping a run")
        self._expiring = Guard(logger, "Ending a run whose time is over", max_delay_s=5.0)

    def cancel(self, keys: Iterable[str]) -> set[str]:
        """Stop the runs of keys. They have their grace; to ask twice does not shorten it.

        Returns
        -------
        set of str
            The keys that have no run. One that begins later stops by itself.
        """
        wanted = set(keys)
        self._refused.update(dict.fromkeys(wanted))  # first: a run looks when it is among the runs
        while len(self._refused) > max(_MOST_REFUSED, len(wanted)):
            del self._refused[next(iter(self._refused))]
        for run in list(self._runs.values()):
            if run.key in wanted:
                with self._guard:
                    run.cancel()
                self._begin(run, self._grace)
                wanted.discard(run.key)
        return wanted

    def drop(self, ids: Iterable[str]) -> None:
        """Stop runs that nobody hears any more, at once, but for the grace of canceled ones."""
        for run_id in ids:
            run = self._runs.get(run_id)
            if run is not None:
                with self._guard:
                    run.drop()
                self._begin(run, 0.0)

    def limit(self, run: RunControl, seconds: float | None) -> None:
        """Stop a run when it goes on for more than ``seconds``; None takes that back."""
        timer = self._limits.pop(run, None)
        if timer is not None:
            timer.cancel()
        if seconds is not None:
            loop = asyncio.get_running_loop()
            self._limits[run] = loop.call_later(seconds, self._expire, run)

    def _expire(self, run: RunControl) -> None:
        self._limits.pop(run, None)
        with self._expiring:
            if run.expire():
                self._begin(run, 0.0)
        if self._expiring.failed:
            self.limit(run, self._expiring.delay_s)

    async def close(self, timeout: float) -> None:
        """Stop all runs, and wait for their ends for at most ``timeout`` seconds.

        Processes of theirs that are left shortly before are killed, as their grace is that of
        the worker, which ends.
        """
        self._restart_after = None
        for task in list(self._tasks.values()):
            task.cancel()
        self._tasks.clear()
        for timer in self._limits.values():
            timer.cancel()
        self._limits.clear()
        self.drop(list(self._runs))
        if self._tasks:
            tasks = list(self._tasks.values())
            _, left = await asyncio.wait(tasks, timeout=max(timeout - _KILL_TIME, 0.0))
            for run in list(self._runs.values()):
                with self._guard:
                    run.kill_processes()
            if left:
                await asyncio.wait(left, timeout=min(timeout, _KILL_TIME))
        for task in list(self._tasks.values()):
            task.cancel()

    def _begin(self, run: RunControl, grace: float) -> None:
        if run in self._tasks:  # it is being stopped, and to ask again changes nothing
            return
        task = asyncio.get_running_loop().create_task(self._insist(run, grace))
        self._tasks[run] = log_failure(task, logger, f"Stopping a run of job {run.spec.id}")
        task.add_done_callback(lambda done: self._forget(run, done))

    def _forget(self, run: RunControl, task: asyncio.Task[None]) -> None:
        if self._tasks.get(run) is task:
            del self._tasks[run]

    async def _insist(self, run: RunControl, grace: float) -> None:
        """Interrupt a run until it ends."""
        loop = asyncio.get_running_loop()
        if not await self._goes_on(run, grace):
            return
        start, pause = loop.time(), max(self._grace, _LEAST_PAUSE)
        has_complained = False
        while True:
            with self._guard:
                run.interrupt()
            if not await self._goes_on(run, pause):
                return
            if not has_complained:
                has_complained = True
                with self._guard:
                    self._complain(run)
            limit = self._restart_after
            if limit is not None and loop.time() - start >= limit:
                self._give_up(run)
                return

    async def _goes_on(self, run: RunControl, seconds: float) -> bool:
        """Wait for the end of a run. Say whether it still goes on."""
        deadline = asyncio.get_running_loop().time() + seconds
        while run.id in self._runs:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return True
            await asyncio.sleep(min(left, 0.05))
        return False

    def _complain(self, run: RunControl) -> None:
        logger.warning("A run of job %s was interrupted and goes on", run.spec.id)
        then = (
            f"Its worker is restarted after {self._restart_after:g} s "
            "(girder.worker.restart-stuck)."
            if self._restart_after is not None
            else "The job ends when that returns; girder.worker.restart-stuck can be set for it."
        )
        run.write(
            f"The job is to end, but {run.stuck_reason}. {then} A task with isolation='process' "
            "can be ended at any time.\n"
        )
