"""Tasks with options that no code in Girder imports: their names alone are known there."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from girder_worker.app import app


def _count_runs(path: str) -> int:
    """Count the runs in a file, and wait in the first one."""
    counter = Path(path)
    with counter.open("a") as file:
        file.write("run\n")
    runs = len(counter.read_text().splitlines())
    if runs == 1:
        time.sleep(60)
    return runs


@app.task(acks_late=True)
def runs_at_least_once(path: str) -> int:
    """Return the number of runs. A task whose worker is lost runs again."""
    return _count_runs(path)


@app.task
def runs_at_most_once(path: str) -> int:
    """Return the number of runs, of which there is one."""
    return _count_runs(path)


@app.task(acks_late=True)
def may_repeat() -> None:
    """Do nothing, as often as it takes."""


@app.task
def may_run_once() -> None:
    """Do nothing, once."""


def _loop() -> None:
    while True:
        time.sleep(0.05)


@app.task(time_limit=1)
def is_limited() -> None:
    """Run until the time limit."""
    _loop()


@app.task(soft_time_limit=1)
def is_softly_limited() -> str:
    """Run until the soft time limit, and clean up."""
    from celery.exceptions import SoftTimeLimitExceeded

    with contextlib.suppress(SoftTimeLimitExceeded):
        _loop()
    return "cleaned up"


@app.task(ignore_result=True)
def returns_what_nobody_reads() -> str:
    """Return a text."""
    return "text"
