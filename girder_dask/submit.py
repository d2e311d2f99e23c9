"""Where a job is recorded and sent.

A call becomes a :class:`Submission` here. What records it is a :class:`Backend`, and
which one is decided in one explicit place: the Girder plugin calls :func:`install` when
it is loaded. Nothing looks at ``sys.modules`` or the environment to find out where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from girder_dask.errors import NotConnectedError

__all__ = ["Backend", "StoredResult", "Submission", "backend", "install"]


@dataclass(frozen=True, slots=True)
class Submission:
    """A call that is to become a job.

    ``args`` and ``kwargs`` are what people read on the job: plain values, transforms as
    their ``_repr_model_``. ``payload`` is the pickled call that a worker opens. ``hooks``
    are the result hooks, whose ``job`` is set once there is one. ``user`` is a Girder user
    document, or None for the user of the request.
    """

    task: str
    payload: bytes = field(repr=False)
    package: str | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    type: str = "dask"
    public: bool = False
    handler: str | None = None
    other_fields: Mapping[str, Any] = field(default_factory=dict)
    user: Any = None
    token: Any = field(default=None, repr=False)
    api_url: str | None = None
    retries: int = 0
    timeout: float | None = None
    resources: Mapping[str, float] | None = None
    priority: int = 0
    isolation: str = "thread"


@dataclass(frozen=True, slots=True)
class StoredResult:
    """What is kept of the end of a job: the packed value, or the reason of an ERROR."""

    value: bytes | None = field(default=None, repr=False)
    error: str | None = None


class Backend(Protocol):
    """A way to Girder and, behind it, to the scheduler."""

    #: Whether what a task returned may be unpickled here, which can run its code.
    unpickles: bool

    def submit(self, submissions: Sequence[Submission]) -> list[dict[str, Any]]:
        """Record a job for each, send them to the scheduler, and return the job documents."""

    def load_job(self, job_id: str, *, log: bool = False) -> dict[str, Any]:
        """Return a job document. Raises GirderError where there is none that may be read."""

    def load_result(self, job_id: str) -> StoredResult:
        """Return what is kept of the end of a job."""

    def cancel(self, job_id: str) -> None:
        """Ask for the end of a job."""

    def scheduler_address(self) -> str | None:
        """Return the address of the Dask scheduler, if one is set."""


_backend: Backend | None = None


def install(new: Backend | None) -> None:
    """Make ``new`` the backend of this process. None takes it away."""
    global _backend
    _backend = new


def backend() -> Backend:
    """Return the backend of this process.

    Raises
    ------
    NotConnectedError
        If there is none: this is neither a Girder with the dask plugin nor a connected process.
    """
    if _backend is None:
        raise NotConnectedError(
            "No Girder is known here, so no job can be recorded. Call delay() inside a Girder "
            "whose dask plugin is loaded. To run the function without a job, call it directly."
        )
    return _backend
