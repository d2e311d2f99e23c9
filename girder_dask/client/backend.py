"""The backend of a process or a run, which records submissions in Girder.

Explicit calls alone choose the backend: the Girder plugin and :func:`girder_dask.connect` call
:func:`set_backend`, and a run on a worker executes within :func:`use_backend`. Nothing inspects
``sys.modules`` or the environment to find out where it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from girder_dask.errors import NotConnectedError
from girder_dask.protocol.celery_message import CeleryJob, CeleryMessage
from girder_dask.protocol.messages import MapParent, StoredResult, Submission

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "Backend",
    "CeleryMessages",
    "get_backend",
    "has_backend",
    "in_run",
    "set_backend",
    "unset_backend",
    "use_backend",
    "without_backend",
]


class CeleryMessages(Protocol):
    """Interface for the messages of Celery, with which girder_worker's tasks are started."""

    def send(self, message: CeleryMessage, job: CeleryJob | None, call: str) -> str | None:
        """Record a message as a job, with the given fields, and send the job.

        In a run, ``call`` is a text that stands for the task and the arguments. If an earlier run
        of the sending job has sent another call with the id of this one, nothing is recorded, and
        the id of the job of that call is returned.
        """

    def control(self, method: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the answers of workers to a command of Celery, by the names of the workers."""

    def result(self, task_id: str) -> StoredResult | None:
        """Return the result of the newest job with an id of Celery, None if there is none."""


class Backend(Protocol):
    """Interface that records jobs, sends them to the scheduler, and reads their results."""

    #: Whether functions may be sent by value, such as those of a notebook.
    ships_code: bool

    @property
    def celery_messages(self) -> CeleryMessages:
        """The interface for the messages of Celery."""

    def submit(
        self,
        submissions: Sequence[Submission],
        group: MapParent | None = None,
        *,
        more: bool = False,
    ) -> list[dict[str, Any]]:
        """Record a job for each submission, send the jobs, and return their documents.

        With a group, its parent job is recorded as well, and its document comes first. With
        ``more``, further jobs of the group follow with :meth:`extend_map`.
        """

    def extend_map(
        self, parent: str, submissions: Sequence[Submission], *, offset: int, is_last: bool
    ) -> list[str]:
        """Record further jobs under the parent of a map, and return their ids.

        ``offset`` is the number of jobs before them.
        """

    def unpickles(self, job: Mapping[str, Any]) -> bool:
        """Return True if the result of this job may be unpickled here, which can run code."""

    def load_job(self, job_id: str, *, log: bool = False) -> dict[str, Any]:
        """Return a job document. Raise GirderError if there is none that may be read."""

    def load_jobs(self, job_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return ``_id``, ``title``, ``status`` and ``progress`` of the jobs that may be read."""

    def load_log(self, job_id: str) -> str:
        """Return the whole stored log of a job, which may be long."""

    def load_result(self, job_id: str) -> StoredResult:
        """Return the stored result of a job."""

    def load_results(self, job_ids: Sequence[str]) -> dict[str, StoredResult]:
        """Return the stored results of the jobs that may be read, by job id."""

    def cancel(self, job_id: str) -> None:
        """Cancel a job."""

    def scheduler_address(self) -> str | None:
        """Return the address of the Dask scheduler, if one is known."""

    def dask_client(self) -> Client:
        """Return a client of the Dask scheduler. Raise SchedulerError if none is known."""


@dataclass(frozen=True, slots=True)
class _NoBackend:
    """Placeholder for the backend of a run that has none."""

    reason: str


_backend: Backend | None = None
_of_this_run: ContextVar[Backend | _NoBackend | None] = ContextVar(
    "girder_dask_backend", default=None
)


def set_backend(new: Backend | None) -> None:
    """Make ``new`` the backend of this process. None removes the current one."""
    global _backend
    _backend = new


def has_backend() -> bool:
    """Return True if this process has a backend."""
    return _backend is not None


def in_run() -> bool:
    """Return True if this code belongs to the run of a job that has a backend."""
    return not isinstance(_of_this_run.get(), (_NoBackend, type(None)))


def unset_backend(old: Backend) -> None:
    """Remove a backend from this process, unless another one has replaced it."""
    if _backend is old:
        set_backend(None)


@contextlib.contextmanager
def use_backend(new: Backend) -> Iterator[None]:
    """Make ``new`` the backend of a block of code, and of the threads that it starts."""
    token = _of_this_run.set(new)
    try:
        yield
    finally:
        _of_this_run.reset(token)


@contextlib.contextmanager
def without_backend(reason: str) -> Iterator[None]:
    """Refuse to record jobs in a block of code. The errors contain ``reason``."""
    token = _of_this_run.set(_NoBackend(reason))
    try:
        yield
    finally:
        _of_this_run.reset(token)


def get_backend() -> Backend:
    """Return the backend of this run, or of this process.

    Raises
    ------
    NotConnectedError
        If there is none: this is not a Girder with the dask plugin, a task that runs as a
        job, or a process that called :func:`girder_dask.connect`.
    """
    of_this_run = _of_this_run.get()
    if isinstance(of_this_run, _NoBackend):
        if _backend is None:
            raise NotConnectedError(of_this_run.reason)
        of_this_run = None
    found = of_this_run or _backend
    if found is None:
        raise NotConnectedError(
            "No Girder is known here, so no job can be recorded. In a notebook or a script, call "
            "girder_dask.connect('https://girder.example.org/api/v1', api_key=…) first. In Girder, "
            "load the plugin dask. To run the function here without a job, call it directly, or "
            "give girder_job_disable=True."
        )
    return found
