"""The processes that a run has started, and how they are ended: SIGTERM, then SIGKILL.

They are those that its Python code waits for, what these have started, who is in a process
group of theirs, who writes to the run's log, and who has the name of the run in its
environment. So one is found whose parent has gone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from girder_dask.utils.processes import Process, has_variable, running_processes, send_signal
from girder_dask.worker.concurrency import subprocess_propagation
from girder_dask.worker.job_log.log import JobLog

__all__ = ["ProcessTree"]

_POLL_INTERVAL_S = 0.05
# How long a process may take to be gone that was killed.
_KILL_TIMEOUT_S = 30.0


class ProcessTree:
    """The processes of one run. For any number of threads.

    Parameters
    ----------
    log
        The log of the run, by which its processes are known.
    run
        The name of the run, which its subprocesses carry in their environment.

    Attributes
    ----------
    spared
        The processes that are left alone with all that come from them, as somebody else sees
        to their end.
    """

    def __init__(self, log: JobLog, run: str) -> None:
        self._log = log
        self._run = run
        self._lock = threading.RLock()
        self._asked: set[Process] = set()
        self._groups: set[int] = set()
        self.spared: set[int] = set()
        subprocess_propagation.set_run_name(log, run)

    def stop(self) -> None:
        """Send SIGTERM to each, and SIGKILL to those that had it before."""
        with self._lock:
            # The parents first, so that they do not start anything more.
            for process in self.left():
                is_known = any(process.born == p.born and process.pid == p.pid for p in self._asked)
                send_signal(process.pid, signal.SIGKILL if is_known else signal.SIGTERM)
                self._asked.add(process)

    def kill(self) -> None:
        """Send SIGKILL to each."""
        with self._lock:
            for process in self.left():
                send_signal(process.pid, signal.SIGKILL)
                self._asked.add(process)

    def end(self, grace: float) -> bool:
        """Stop them, and return when none is left. Say whether that is so.

        Parameters
        ----------
        grace
            Seconds between SIGTERM and SIGKILL.
        """
        start = time.monotonic()
        kill_at = start + grace if self.left() else start
        first = True
        while self.left():
            now = time.monotonic()
            if now > kill_at + _KILL_TIMEOUT_S:
                return False
            if first or now >= kill_at:
                self.stop()
            first = False
            time.sleep(_POLL_INTERVAL_S)
        return True

    def left(self) -> list[Process]:
        """Return those that have not ended, parents first."""
        with self._lock:
            return self._left()

    def unfinished(self) -> list[int]:
        """Return the ids of those that Python code has started and that have not ended."""
        started = subprocess_propagation.running_subprocesses(self._log)
        return sorted({p.pid for p in started if p.poll() is None} - self.spared)

    def _left(self) -> list[Process]:
        everybody = {process.pid: process for process in running_processes()}
        subprocesses = subprocess_propagation.running_subprocesses(self._log)
        if not everybody:  # there is no /proc
            return [Process(p.pid, 0, 0, 0) for p in subprocesses if p.poll() is None]
        writers = _writers(self._log.pipe_identity(), everybody)
        named = self._named(everybody)
        started = {process.pid for process in subprocesses}
        asked = {p.pid for p in self._asked if _is_same(p, everybody.get(p.pid))}
        spared = _closure(self.spared, everybody.values(), lambda p, found: p.parent in found)
        own = os.getpgrp()

        def belongs(process: Process, found: set[int]) -> bool:
            return process.parent in found or process.group in self._groups

        found = (started | asked | writers | named) & everybody.keys() - spared - {os.getpid()}
        while True:
            self._groups |= {everybody[pid].group for pid in found} - {own}
            grown = _closure(found, everybody.values(), belongs) - spared - {os.getpid()}
            if grown == found:
                return [everybody[pid] for pid in sorted(found, key=lambda i: everybody[i].born)]
            found = grown

    def _named(self, everybody: dict[int, Process]) -> set[int]:
        """Return the processes with the name of the run. They are younger than this one."""
        own = everybody.get(os.getpid())
        first = 0 if own is None else own.born
        return {
            p.pid
            for p in everybody.values()
            if p.born >= first
            and has_variable(p.pid, subprocess_propagation.RUN_VARIABLE, self._run)
        }


def _is_same(one: Process, other: Process | None) -> bool:
    return other is not None and one.born == other.born


def _closure(
    roots: set[int], everybody: Collection[Process], belongs: Callable[[Process, set[int]], bool]
) -> set[int]:
    found, more = set(roots), set(roots)
    while more:
        more = {p.pid for p in everybody if p.pid not in found and belongs(p, found)}
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
    except OSError:  # it is somebody else's, has ended or has closed it
        return None
    return status.st_dev, status.st_ino
