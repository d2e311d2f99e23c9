"""Cancellation of the runs on a worker: ask them to stop, interrupt them, give them up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from girder_dask.utils.background import Guard, log_failure
from girder_dask.worker.run.control import RunControl

__all__ = ["RunCanceller"]

logger = logging.getLogger(__name__)

# A run that ignores an interruption is interrupted again after the grace, or after this.
_MIN_INTERRUPT_INTERVAL_S = 1.0
# How long before the deadline of a closing worker the processes of runs are killed.
_KILL_TIME_S = 0.5
_POLL_INTERVAL_S = 0.05
_MAX_REFUSED_KEYS = 10_000


class RunCanceller:
    """Canceller of the runs on a worker, for use on its event loop only.

    Parameters
    ----------
    runs
        The active runs, by id.
    refused
        The keys of tasks that must not start here any more.
    grace_s
        Seconds that a canceled run has before it is interrupted.
    restart_after_s
        Seconds after which a run that does not end is given up, None for never.
    give_up
        Called with such a run.
    """

    def __init__(
        self,
        runs: Mapping[str, RunControl],
        refused: dict[str, None],
        grace_s: float,
        restart_after_s: float | None = None,
        give_up: Callable[[RunControl], None] = lambda _run: None,
    ) -> None:
        self._runs = runs
        self._refused = refused
        self._grace_s = grace_s
        self._restart_after_s = restart_after_s
        self._give_up = give_up
        self._tasks: dict[RunControl, asyncio.Task[None]] = {}
        self._time_limits: dict[RunControl, asyncio.TimerHandle] = {}
        # An error in one step prevents neither the next step nor the end of other runs.
        self._guard = Guard(logger, "Stopping a run")
        self._expiry_guard = Guard(logger, "Ending a run whose time is over", max_delay_s=5.0)

    def cancel(self, keys: Iterable[str]) -> set[str]:
        """Cancel the runs of these keys. A second call does not shorten their grace period.

        Returns
        -------
        set of str
            The keys without a run. A run of one that starts later cancels itself.
        """
        wanted = set(keys)
        self._refused.update(dict.fromkeys(wanted))  # first: a run checks this once it is listed
        while len(self._refused) > max(_MAX_REFUSED_KEYS, len(wanted)):
            del self._refused[next(iter(self._refused))]
        for run in list(self._runs.values()):
            if run.key in wanted:
                with self._guard:
                    run.cancel()
                self._stop(run, self._grace_s)
                wanted.discard(run.key)
        return wanted

    def drop(self, ids: Iterable[str]) -> None:
        """Stop runs that the scheduler ignores. A run that was canceled before keeps its grace."""
        for run_id in ids:
            run = self._runs.get(run_id)
            if run is not None:
                with self._guard:
                    run.drop()
                self._stop(run, 0.0)

    def limit(self, run: RunControl, seconds: float | None) -> None:
        """Stop a run that goes on for more than ``seconds``. None removes the limit."""
        timer = self._time_limits.pop(run, None)
        if timer is not None:
            timer.cancel()
        if seconds is not None:
            loop = asyncio.get_running_loop()
            self._time_limits[run] = loop.call_later(seconds, self._expire, run)

    def _expire(self, run: RunControl) -> None:
        self._time_limits.pop(run, None)
        with self._expiry_guard:
            if run.expire():
                self._stop(run, 0.0)
        if self._expiry_guard.failed:
            self.limit(run, self._expiry_guard.delay_s)

    async def close(self, timeout_s: float) -> None:
        """Stop all runs, and wait for their ends for at most ``timeout_s`` seconds.

        Processes that remain shortly before the deadline are killed.
        """
        self._restart_after_s = None
        for task in list(self._tasks.values()):
            task.cancel()
        self._tasks.clear()
        for timer in self._time_limits.values():
            timer.cancel()
        self._time_limits.clear()
        self.drop(list(self._runs))
        if self._tasks:
            tasks = list(self._tasks.values())
            _, left = await asyncio.wait(tasks, timeout=max(timeout_s - _KILL_TIME_S, 0.0))
            for run in list(self._runs.values()):
                with self._guard:
                    run.kill_processes()
            if left:
                await asyncio.wait(left, timeout=min(timeout_s, _KILL_TIME_S))
        for task in list(self._tasks.values()):
            task.cancel()

    def _stop(self, run: RunControl, grace_s: float) -> None:
        if run in self._tasks:  # it is being stopped already
            return
        task = asyncio.get_running_loop().create_task(self._interrupt(run, grace_s))
        self._tasks[run] = log_failure(task, logger, f"Stopping a run of job {run.spec.id}")
        task.add_done_callback(lambda done: self._forget(run, done))

    def _forget(self, run: RunControl, task: asyncio.Task[None]) -> None:
        if self._tasks.get(run) is task:
            del self._tasks[run]

    async def _interrupt(self, run: RunControl, grace_s: float) -> None:
        """Interrupt a run until it ends, or is given up."""
        loop = asyncio.get_running_loop()
        if await self._ends(run, grace_s):
            return
        start, interval_s = loop.time(), max(self._grace_s, _MIN_INTERRUPT_INTERVAL_S)
        is_reported = False
        while True:
            may_be_stuck = True
            with self._guard:
                may_be_stuck = run.interrupt()
            if await self._ends(run, interval_s):
                return
            if may_be_stuck and not is_reported:
                is_reported = True
                with self._guard:
                    self._report_stuck(run)
            limit_s = self._restart_after_s
            if limit_s is not None and loop.time() - start >= limit_s:
                with self._guard:
                    self._give_up(run)
                    return

    async def _ends(self, run: RunControl, seconds: float) -> bool:
        """Wait for the end of a run. Return False if it still goes on after ``seconds``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while run.id in self._runs:
            left = deadline - loop.time()
            if left <= 0:
                return False
            await asyncio.sleep(min(left, _POLL_INTERVAL_S))
        return True

    def _report_stuck(self, run: RunControl) -> None:
        """Write to the logs of the worker and of the job that a run does not end."""
        logger.warning("A run of job %s was interrupted but goes on", run.spec.id)
        then = (
            f"Its worker is restarted after {self._restart_after_s:g} s "
            "(girder.worker.restart-stuck)."
            if self._restart_after_s is not None
            else "The job ends when that returns. "
            "Set girder.worker.restart-stuck to restart the worker in such a case."
        )
        run.write(
            f"The job should end, but {run.stuck_reason}. {then} A task with isolation='process' "
            "can be ended at any time.\n"
        )
