"""Tasks that end in other ways than by returning at once."""

from __future__ import annotations

import sys
import time
from typing import Any

from girder_dask import task


@task
def fails(message: str) -> None:
    """Raise a ValueError with this message, from a function of its own.

    The traceback therefore has two frames of this module: ``fails`` and ``_raise``.
    """
    _raise(message)


def _raise(message: str) -> None:
    raise ValueError(message)


@task
def exits() -> None:
    """Call ``sys.exit(3)``, as a script that was made a task may do."""
    print("about to exit")
    sys.exit(3)


@task
def interrupts() -> None:
    """Raise KeyboardInterrupt."""
    print("about to interrupt")
    raise KeyboardInterrupt


@task(bind=True)
def slow(self: Any, seconds: float, steps: int) -> int:
    """Take ``seconds`` for ``steps`` steps, and return how many were done.

    Each step prints ``step i`` and moves the progress. Asked to stop, it prints
    ``stopped after i`` and returns early.
    """
    for i in range(1, steps + 1):
        time.sleep(seconds / steps)
        if self.canceled:
            print(f"stopped after {i - 1}")
            return i - 1
        print(f"step {i}")
        self.job_manager.updateProgress(total=steps, current=i, message=f"Step {i} of {steps}")
    return steps
