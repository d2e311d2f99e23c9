"""The processes that a run has started, and how they are ended: SIGTERM, then SIGKILL.

They are those that its Python code waits for, what these have started, who is in a process
group of theirs, and who writes to the run's log. So one is found whose parent has gone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path

from girder_dask.descendants import Process, living, send_signal
from girder_dask.logs import JobLog, inherit

__all__ = ["Offspring"]

_PAUSE = 0.05
# How long a process may take to be gone that was killed.
_GONE_TIME = 30.0


class Offspring:
    """The processes of one run.

    Parameters
    ----------
    log
        The log of the run, by which its processes are known.

    Attributes
    ----------
    spared
        The processes that are left alone with all that come from them, as somebody else sees
        to their end.
    """

    def __init__(self, log: JobLog) -> None:
        self._log = log
        self._asked: set[Process] = set()
        self._groups: set[int] = set()
        self.spared: set[int] = set()

    def stop(self) -> None:
        """Send SIGTERM to each, and SIGKILL to those that had it before."""
        # The parents first, so that they do not start anything more.
        for process in self.left():
            is_known = any(process.born == p.born and process.pid == p.pid for p in self._asked)
            send_signal(process.pid, signal.SIGKILL if is_known else signal.SIGTERM)
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
            if now > kill_at + _GONE_TIME:
                return False
            if first or now >= kill_at:
                self.stop()
            first = False
            time.sleep(_PAUSE)
        return True

    def left(self) -> list[Process]:
        """Return those that have not ended, parents first."""
        everybody = {process.pid: process for process in living()}
        subprocesses = inherit.subprocesses(self._log)
        if not everybody:  # there is no /proc
            return [Process(p.pid, 0, 0, 0) for p in subprocesses if p.poll() is None]
        writers = _writers(inherit.pipe_of(self._log), everybody)
        started = {process.pid for process in subprocesses}
        asked = {p.pid for p in self._asked if _is_same(p, everybody.get(p.pid))}
        spared = _closure(self.spared, everybody.values(), lambda p, found: p.parent in found)
        own = os.getpgrp()

        def belongs(process: Process, found: set[int]) -> bool:
            return process.parent in found or process.group in self._groups

        found = (started | asked | writers) & everybody.keys() - spared - {os.getpid()}
        while True:
            self._groups |= {everybody[pid].group for pid in found} - {own}
            grown = _closure(found, everybody.values(), belongs) - spared - {os.getpid()}
            if grown == found:
                return [everybody[pid] for pid in sorted(found, key=lambda i: everybody[i].born)]
            found = grown


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
