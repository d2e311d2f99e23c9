"""Processes marked with an environment variable as those of a stack: found and ended.

Each process of a stack has the environment variable :data:`MARK` with the stack's directory, also
a child that has left its process group or whose parent has died.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection

import psutil

__all__ = ["MARK", "end", "is_running", "marked"]

#: The environment variable that marks the processes of a stack.
MARK = "GIRDER_DASK_STACK"

# Seconds that killed processes may take to end.
_KILL_TIMEOUT_S = 5.0


def is_running(process: psutil.Process) -> bool:
    """Return True if a process runs. A zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def marked(directory: str) -> list[psutil.Process]:
    """Return the running processes of the stack in ``directory``, without this one."""
    found = []
    for process in psutil.process_iter():
        # Processes of other users are not readable, and some end meanwhile.
        with contextlib.suppress(psutil.Error, OSError):
            if (
                process.pid != os.getpid()
                and process.environ().get(MARK) == directory
                and is_running(process)
            ):
                found.append(process)
    return found


def end(processes: Collection[psutil.Process], grace: float) -> None:
    """Terminate processes, and kill those that still run after ``grace`` seconds."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _wait(processes, grace)
    for process in processes:
        if is_running(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    _wait(processes, _KILL_TIMEOUT_S)


def _wait(processes: Collection[psutil.Process], timeout_s: float) -> None:
    """Wait until processes have ended, for some seconds at most."""
    deadline = time.monotonic() + timeout_s
    while any(is_running(p) for p in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
