"""What a worker gives to the runs on it, and which runs there are."""

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
    """What a worker gives to the runs on it.

    ``api_url`` is Girder's REST API as this worker is configured to reach it, and
    ``scheduler_api_url`` as the scheduler is; None where there is no such setting. ``max_result``
    is in bytes. ``cache`` holds files of this host, and ``cache_error`` is why there is none
    although one is asked for. ``fork_server_supervisor`` is what forks the processes of tasks that
    have one of their own, and ``isolation`` is ``'process'`` if all have. ``grace`` is in seconds,
    between asking such a task to stop and killing it. ``runs`` are those that go on, by their ids;
    ``refused`` are keys that are not to be begun with. ``dask_client`` returns a client of the
    scheduler, and ``scheduler`` is its address with what a client needs to be let in. ``may_start``
    asks it about an attempt. ``limit`` has a run stopped after so many seconds, or no more for
    None.
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
    grace: float = 5.0
    log_level: int | str = "INFO"
    dask_client: Callable[[], Any] | None = None
    scheduler: tuple[str, Any] | None = None
    may_start: Callable[[str, int], StartAnswer] | None = None
    limit: Callable[[RunControl, float | None], None] = lambda _run, _seconds: None
    runs: dict[str, RunControl] = field(default_factory=dict)
    refused: dict[str, None] = field(default_factory=dict)

    def girder_of(self, spec: JobSpec) -> str | None:
        """Return where Girder is for a job, to which its token is sent, None if nobody knows it.

        This worker's own setting comes first, then what code inside Girder gave for the call,
        the scheduler's setting, and those of Girder. Nothing of it comes with a request.
        """
        return self.api_url or spec.girder_api_url or self.scheduler_api_url or spec.default_api_url
