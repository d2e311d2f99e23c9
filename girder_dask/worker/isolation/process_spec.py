"""The specification of a task's process, which it reads before its inputs are available."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from girder_dask.protocol.messages import JobSpec
from girder_dask.tasks.container_scope import ContainerScope
from girder_dask.worker.location import WorkerLocation

__all__ = ["MAX_MESSAGE_BYTES", "ProcessSpec"]

#: Most bytes of a message to or from the process; a socket takes about 200 kB at once.
MAX_MESSAGE_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A job, and the parts of its worker that its process needs.

    Attributes
    ----------
    job
        The job, without its payload.
    function
        The pickled function, None for the task that ``job`` names.
    scheduler
        The address of Dask's scheduler and what a client needs to connect, pickled: few tasks
        need it, and opening it imports Dask.
    path
        The worker's ``sys.path``.
    container_scope
        What the containers of the run may use.
    environment
        The environment of a forked process. None for a process that was started with its own.
    """

    job: JobSpec
    location: WorkerLocation
    work_dir: Path
    function: bytes | None = field(default=None, repr=False)
    api_url: str | None = None
    gpus: tuple[str, ...] = ()
    log_level: int | str = "INFO"
    scheduler: bytes | None = field(default=None, repr=False)
    path: tuple[str, ...] = ()
    session: Mapping[str, Any] | None = field(default=None, repr=False)
    container_scope: ContainerScope | None = None
    environment: Mapping[str, str] | None = field(default=None, repr=False)
