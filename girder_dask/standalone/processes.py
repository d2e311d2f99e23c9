"""Finding and ending processes that belong to a stack, whoever their parent is now.

Every process of a stack carries the environment variable :data:`MARK` with the stack's
directory. A child that left its process group, or whose parent died, still has it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection

import psutil

__all__ = ["MARK", "end", "is_running", "marked"]

#: The environment variable by which the processes of a stack are known.
MARK = "GIRDER_DASK_STACK"


def is_running(process: psutil.Process) -> bool:
    """Say whether a process still runs. One that waits to be reaped does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def marked(directory: str) -> list[psutil.Process]:
    """Return the running processes of the stack in ``directory``, without this one."""
    found = []
    for process in psutil.process_iter():
        # Processes of others may not be looked into, and some end meanwhile.
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
    deadline = time.monotonic() + grace
    while any(is_running(p) for p in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        if is_running(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
