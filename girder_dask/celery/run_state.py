"""The state of the message that runs in this context, which signals and the transport share."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from girder_dask.jobs import FINAL, JobStatus
from girder_dask.protocol.celery_message import CeleryMessage
from girder_dask.tasks.running_job import RunningJob

__all__ = ["RUN_HEADER", "TOKEN_HEADER", "RunState", "current", "current_run"]

#: The header of the running request by which a message that tries it again is recognized.
RUN_HEADER = "girder_dask_run"

#: The header with the token of the task's client. Only an empty one travels: the client of that
#: task has no rights.
TOKEN_HEADER = "girder_client_token"  # noqa: S105 - a name


@dataclass
class RunState:
    """The state of one running message.

    Attributes
    ----------
    job
        The job that runs it.
    task_id, hostname
        The id and the worker that the request of the task names.
    error
        What the task raised.
    ended
        The final state that the task has given to its own job.
    again
        The message with which the task asks to be tried again.
    containers
        The containers that its own thread has created, each with the client of docker-py.
    attachments
        What has been attached to such containers before their start. Each has ``close()``.
    reads_output
        Whether the output of the container that is created now will be read.
    keeps_containers
        Whether the call wants its containers to stay when they have ended.
    thread_id
        The thread that runs it.
    """

    job: RunningJob
    task_id: str
    hostname: str
    error: BaseException | None = None
    ended: JobStatus | None = None
    again: CeleryMessage | None = None
    containers: list[tuple[Any, str]] = field(default_factory=list)
    attachments: list[Any] = field(default_factory=list)
    reads_output: bool = False
    keeps_containers: bool = False
    thread_id: int = field(default_factory=threading.get_ident)

    def keeps(self, message: CeleryMessage) -> bool:
        """Return True if a message tries the running task again, which starts no other job."""
        if message.headers.get(RUN_HEADER) != self.job.id:
            return False
        self.again = message
        return True

    def revoked(self) -> dict[str, list[str]]:
        """Return the answer to Celery's command ``revoked``, with which tasks see a cancel."""
        return {self.hostname: [self.task_id] if self.job.canceled else []}


class CeleryJobManager:
    """girder_worker's ``JobManager`` over that of the running job."""

    url = method = reference = None
    headers: Mapping[str, str] = {}
    logPrint = True  # noqa: N815 - their name

    def __init__(self, own: Any, state: RunState) -> None:
        self._own = own
        self._state = state

    def updateStatus(self, status: int | None) -> None:
        """Set the state of the job. A final one counts when the task returns."""
        if status is None:
            return
        if status in FINAL:
            self._state.ended = JobStatus(status)
        else:
            self._own.updateStatus(status)

    def _flush(self) -> None:
        """Do nothing: output is sent within a second."""

    cleanup = _flush

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


#: The state of the message that runs in this context.
current: ContextVar[RunState | None] = ContextVar("girder_dask_celery_run", default=None)


def current_run() -> RunState | None:
    """Return the state of the message that runs in this context, or None."""
    return current.get()
