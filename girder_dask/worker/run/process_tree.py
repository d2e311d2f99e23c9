"""The processes that a run has started, and their end: SIGTERM, then SIGKILL.

They are the subprocesses of its Python code, their descendants, and all processes that are in a
process group of these, write to the run's log, or have the id of the run in their environment.
So a process is found even if its parent has ended.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from girder_dask.utils.processes import Process, has_variable, running_processes, send_signal
from girder_dask.worker.job_log.log import JobLog
from girder_dask.worker.propagation import subprocess_propagation

__all__ = ["ProcessTree"]

_POLL_INTERVAL_S = 0.05
# Seconds that a killed process may take to end.
_KILL_TIMEOUT_S = 30.0


class ProcessTree:
    """The processes of one run. Any thread may use it.

    Parameters
    ----------
    log
        The log of the run, by which its processes are recognized.
    run
        The id of the run, which its subprocesses have in their environment.

    Attributes
    ----------
    spared
        Subreapers, which are not signaled: they end their descendants themselves.
    """

    def __init__(self, log: JobLog, run: str) -> None:
        self._log = log
        self._run = run
        self._lock = threading.RLock()
        self._terminated: set[Process] = set()
        self._groups: set[int] = set()
        self.spared: set[int] = set()
        subprocess_propagation.set_run_id(log, run)

    def terminate(self) -> None:
        """Send SIGTERM to each process, and SIGKILL to those that were sent SIGTERM before."""
        with self._lock:
            # The parents first, so that they start no others.
            for process in self.running():
                is_known = any(
                    process.born == p.born and process.pid == p.pid for p in self._terminated
                )
                send_signal(process.pid, signal.SIGKILL if is_known else signal.SIGTERM)
                self._terminated.add(process)

    def kill(self) -> None:
        """Send SIGKILL to each process."""
        with self._lock:
            for process in self.running():
                send_signal(process.pid, signal.SIGKILL)
                self._terminated.add(process)

    def end(self, grace_s: float) -> bool:
        """Terminate the processes, and wait for their end. Return False if one is left.

        Parameters
        ----------
        grace_s
            Seconds between SIGTERM and SIGKILL.
        """
        start = time.monotonic()
        kill_at = start + grace_s if self.running() else start
        first = True
        while self.running():
            now = time.monotonic()
            if now > kill_at + _KILL_TIMEOUT_S:
                return False
            if first or now >= kill_at:
                self.terminate()
            first = False
            time.sleep(_POLL_INTERVAL_S)
        return True

    def running(self) -> list[Process]:
        """Return the processes that have not ended, parents first."""
        with self._lock:
            return self._running()

    def unfinished_subprocesses(self) -> list[int]:
        """Return the ids of the subprocesses of Python code that have not ended."""
        started = subprocess_propagation.running_subprocesses(self._log)
        return sorted({p.pid for p in started if p.poll() is None} - self.spared)

    def _running(self) -> list[Process]:
        processes = {process.pid: process for process in running_processes()}
        subprocesses = subprocess_propagation.running_subprocesses(self._log)
        writers = _writers(self._log.pipe_identity(), processes)
        named = self._named(processes)
        started = {process.pid for process in subprocesses}
        terminated = {p.pid for p in self._terminated if _is_same(p, processes.get(p.pid))}
        spared = _closure(self.spared, processes.values(), lambda p, found: p.parent in found)
        own = os.getpgrp()

        def belongs(process: Process, found: set[int]) -> bool:
            return process.parent in found or process.group in self._groups

        found = (started | terminated | writers | named) & processes.keys() - spared - {os.getpid()}
        while True:
            self._groups |= {processes[pid].group for pid in found} - {own}
            grown = _closure(found, processes.values(), belongs) - spared - {os.getpid()}
            if grown == found:
                return [processes[pid] for pid in sorted(found, key=lambda i: processes[i].born)]
            found = grown

    def _named(self, processes: dict[int, Process]) -> set[int]:
        """Return the processes with the id of the run, none of which is older than this one."""
        own = processes.get(os.getpid())
        first = 0 if own is None else own.born
        return {
            p.pid
            for p in processes.values()
            if p.born >= first
            and has_variable(p.pid, subprocess_propagation.RUN_VARIABLE, self._run)
        }


def _is_same(one: Process, other: Process | None) -> bool:
    return other is not None and one.born == other.born


def _closure(
    roots: set[int], processes: Collection[Process], belongs: Callable[[Process, set[int]], bool]
) -> set[int]:
    found, more = set(roots), set(roots)
    while more:
        more = {p.pid for p in processes if p.pid not in found and belongs(p, found)}
        found |= more
    return found


def _writers(pipe: tuple[int, int] | None, pids: Collection[int]) -> set[int]:
    """Return the processes whose output goes to a pipe."""
    if pipe is None:
        return set()
    return {pid for pid in pids if any(_file(pid, fd) == pipe for fd in (1, 2))}


def _file(pid: int, fd: int) -> tuple[int, int] | None:
    try:
        status = Path(f"/proc/{pid}/fd/{fd}").stat()
    except OSError:  # the process is another user's, or has ended, or has closed the file
        return None
    return status.st_dev, status.st_ino
