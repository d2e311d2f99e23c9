"""The context that the runs on a worker share, with the list of active runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girder_dask.worker.gpus import GpuAllocator
from girder_dask.worker.isolation.fork_server_supervisor import ForkServerSupervisor
from girder_dask.worker.location import WorkerLocation
from girder_dask.worker.outbox import Outbox

if TYPE_CHECKING:
    from girder_dask.protocol.messages import JobSpec
    from girder_dask.worker.run.control import RunControl
    from girder_dask.worker.run.fencing import StartAnswer

__all__ = ["WorkerContext"]


@dataclass(slots=True)
class WorkerContext:
    """The context that the runs on a worker share.

    Attributes
    ----------
    api_url, scheduler_api_url
        Girder's REST API in the settings of this worker, and of the scheduler; None without one.
    max_result
        Bytes of the largest result that is stored with a job.
    cache, cache_error
        The cache of files on this host, or why there is none although it is configured.
    fork_server_supervisor
        Forks the processes of tasks that have one of their own.
    isolation
        ``'process'`` if all tasks have a process of their own.
    grace_s
        Seconds between asking a process to stop and killing it.
    dask_client
        Returns a client of the scheduler.
    scheduler
        The address of the scheduler, and the security settings of its clients.
    may_start
        Asks the scheduler whether an attempt may start.
    limit
        Has a run stopped after the given seconds; None removes the limit.
    runs
        The active runs, by id.
    refused
        Keys of tasks that must not start here any more.
    """

    location: WorkerLocation
    outbox: Outbox
    directory: Path
    api_url: str | None
    max_result: int
    scheduler_api_url: str | None = None
    cache: Any = None
    cache_error: str | None = None
    gpus: GpuAllocator = field(default_factory=GpuAllocator)
    fork_server_supervisor: ForkServerSupervisor = field(default_factory=ForkServerSupervisor)
    isolation: str = "thread"
    grace_s: float = 5.0
    log_level: int | str = "INFO"
    dask_client: Callable[[], Any] | None = None
    scheduler: tuple[str, Any] | None = None
    may_start: Callable[[str, int], StartAnswer] | None = None
    limit: Callable[[RunControl, float | None], None] = lambda _run, _seconds: None
    runs: dict[str, RunControl] = field(default_factory=dict)
    refused: dict[str, None] = field(default_factory=dict)

    def girder_of(self, spec: JobSpec) -> str | None:
        """Return the address of Girder to which a job's token is sent, None if there is none.

        This worker's own setting comes first, then what code inside Girder gave for the call,
        the scheduler's setting, and those of Girder. None of them comes from a request.
        """
        return self.api_url or spec.girder_api_url or self.scheduler_api_url or spec.default_api_url
