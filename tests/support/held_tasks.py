"""Tasks that run until a test lets them end."""

from __future__ import annotations

import threading

from girder_dask import current_job, task
from girder_dask.errors import JobInterrupted

#: Events: set by a task that has begun, and by a test that lets it end.
started = threading.Event()
go_on = threading.Event()


@task
def patient() -> str:
    started.set()
    while not current_job().canceled:
        assert not go_on.wait(0.002)
    return "stopped by itself"


@task
def deaf() -> None:
    started.set()
    while not go_on.is_set():
        pass


@task
def stubborn() -> str:
    started.set()
    try:
        while not go_on.is_set():
            pass
    except JobInterrupted:
        return "ignored"
    return "never stopped"
