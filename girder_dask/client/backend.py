"""Where a job is recorded and sent.

What records a submission is a :class:`Backend`, and
which one is decided in explicit places alone: the Girder plugin and
:func:`girder_dask.connect` call :func:`set_backend`, and a run on a worker is within
:func:`use_backend`. Nothing looks at ``sys.modules`` or the environment to find out where it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from girder_dask.errors import NotConnectedError
from girder_dask.protocol.messages import MapParent, StoredResult, Submission

if TYPE_CHECKING:
    from distributed import Client

__all__ = [
    "Backend",
    "get_backend",
    "has_backend",
    "in_run",
    "set_backend",
    "unset_backend",
    "use_backend",
    "without_backend",
]


class Backend(Protocol):
    """A way to Girder and, behind it, to the scheduler."""

    #: Whether functions may be shipped by value: those of a notebook, and local ones.
    ships_code: bool

    def submit(
        self, submissions: Sequence[Submission], group: MapParent | None = None
    ) -> list[dict[str, Any]]:
        """Record a job for each, send them to the scheduler, and return the job documents.

        With a group, its parent job is recorded too, and its document comes first.
        """

    def unpickles(self, job: Mapping[str, Any]) -> bool:
        """Say whether what this job returned may be unpickled here, which can run its code."""

    def load_job(self, job_id: str, *, log: bool = False) -> dict[str, Any]:
        """Return a job document. Raises GirderError where there is none that may be read."""

    def load_jobs(self, job_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return ``_id``, ``title``, ``status`` and ``progress`` of those that may be read."""

    def load_log(self, job_id: str) -> str:
        """Return all that is kept of the log of a job, which may be long."""

    def load_result(self, job_id: str) -> StoredResult:
        """Return what is kept of the end of a job."""

    def load_results(self, job_ids: Sequence[str]) -> dict[str, StoredResult]:
        """Return what is kept of the ends of many jobs, by their ids, of those to be read."""

    def cancel(self, job_id: str) -> None:
        """Ask for the end of a job."""

    def scheduler_address(self) -> str | None:
        """Return the address of the Dask scheduler, if one is known."""

    def dask_client(self) -> Client:
        """Return a client of the Dask scheduler. Raises SchedulerError where none is known."""


@dataclass(frozen=True, slots=True)
class _Nowhere:
    """Stands for the way to Girder in a run that knows none."""

    why: str


_backend: Backend | None = None
_of_this_run: ContextVar[Backend | _Nowhere | None] = ContextVar(
    "girder_dask_backend", default=None
)


def set_backend(new: Backend | None) -> None:
    """Make ``new`` the backend of this process. None takes it away."""
    global _backend
    _backend = new


def has_backend() -> bool:
    """Say whether this process has a backend."""
    return _backend is not None


def in_run() -> bool:
    """Say whether this code is part of the run of a job, which has a way to Girder."""
    return not isinstance(_of_this_run.get(), (_Nowhere, type(None)))


def unset_backend(old: Backend) -> None:
    """Take a backend away, unless another was installed since."""
    if _backend is old:
        set_backend(None)


@contextlib.contextmanager
def use_backend(new: Backend) -> Iterator[None]:
    """Make ``new`` the backend of what runs within, and of the threads that it starts."""
    token = _of_this_run.set(new)
    try:
        yield
    finally:
        _of_this_run.reset(token)


@contextlib.contextmanager
def without_backend(why: str) -> Iterator[None]:
    """Record no jobs of what runs within, and say why."""
    token = _of_this_run.set(_Nowhere(why))
    try:
        yield
    finally:
        _of_this_run.reset(token)


def get_backend() -> Backend:
    """Return the backend of this run, or of this process.

    Raises
    ------
    NotConnectedError
        If there is none: this is no Girder with the dask plugin, no task that runs as a
        job, and no process that called :func:`girder_dask.connect`.
    """
    of_this_run = _of_this_run.get()
    if isinstance(of_this_run, _Nowhere):
        if _backend is None:
            raise NotConnectedError(of_this_run.why)
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
