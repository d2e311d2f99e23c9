"""A task that starts another one, and waits for it."""

from __future__ import annotations

import time
from pathlib import Path

from girder_dask import current_job, task

__all__ = ["follows", "leads"]


@task
def leads(directory: str, number: int) -> None:
    """When there is a file ``start-<number>``, start :func:`follows` and print what it returns."""
    _wait_for(Path(directory, f"start-{number}"))
    print("had", follows.delay(directory, number).get())


@task
def follows(directory: str, number: int) -> int:
    """Say that it has begun; return ten times the number when there is a file ``end``."""
    Path(directory, f"began-{number}-{current_job().id}").touch()
    _wait_for(Path(directory, "end"))
    return 10 * number


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.05)
