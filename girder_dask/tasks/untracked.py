"""Calls that run without a job: ``girder_job_disable=True``.

They run on the Dask cluster if one is known, otherwise at once in this process. Girder records
nothing.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from girder_dask.client.backend import get_backend
from girder_dask.client.result import CallResult
from girder_dask.errors import JobCanceled, NotConnectedError, TransformError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.payload import open_call
from girder_dask.protocol.transform_types import is_transform
from girder_dask.tasks.completion import completed
from girder_dask.utils.pytree import tree_map

if TYPE_CHECKING:
    from distributed import Future

__all__ = ["UntrackedResult", "run", "start"]


def run(payload: bytes) -> Any:
    """Open a packed call and run it. Dask runs this function."""
    call = open_call(payload)
    begun: list[Any] = []

    def transformed(value: Any) -> Any:
        if not is_transform(value):
            return value
        if getattr(value, "gc", 0) is None and hasattr(value, "_id"):
            raise TransformError(
                f"{value!r} needs the Girder token of a job, and this call has no job. Start it "
                "without girder_job_disable=True."
            )
        begun.append(value)
        return value.transform()

    try:
        function: Callable[..., Any] = call.function  # type: ignore[assignment]
        args, kwargs = tree_map(transformed, call.args), tree_map(transformed, call.kwargs)
        return completed(function, *args, **kwargs)
    finally:
        for transform in reversed(begun):
            transform.cleanup()


def start(name: str, payload: bytes, options: Mapping[str, Any]) -> UntrackedResult:
    """Run a packed call on the cluster if one is known here, otherwise at once in this process.

    Raises
    ------
    SchedulerError
        If this process has a way to Girder, but cannot reach its scheduler.
    """
    try:
        backend = get_backend()
    except NotConnectedError:
        return UntrackedResult(value=_outcome(payload))
    from distributed import fire_and_forget

    client = backend.dask_client()
    future = client.submit(
        run,
        payload,
        key=f"{name.rpartition(':')[2].strip('<>')}-{uuid.uuid4().hex}",
        pure=False,
        retries=options["retries"] or None,
        resources=options["resources"] and dict(options["resources"]),
        priority=options["priority"],
    )
    fire_and_forget(future)
    return UntrackedResult(future=future)


def _outcome(payload: bytes) -> tuple[Any, Exception | None]:
    try:
        return run(payload), None
    except Exception as e:  # noqa: BLE001 - get() raises it
        return None, e


class UntrackedResult(CallResult):
    """The result of a call without a job. It has the methods of a ``JobResult``."""

    #: There is no job document.
    job = None

    def __init__(
        self,
        *,
        future: Future[Any] | None = None,
        value: tuple[Any, Exception | None] = (None, None),
    ) -> None:
        self.future = future
        self._value = value

    @property
    def id(self) -> str | None:
        """The Dask key of the call. None if it ran in this process."""
        return None if self.future is None else str(self.future.key)

    @property
    def status(self) -> JobStatus:
        """The state that a job would have."""
        if self.future is None:
            return JobStatus.SUCCESS if self._value[1] is None else JobStatus.ERROR
        names = {"finished": JobStatus.SUCCESS, "pending": JobStatus.QUEUED}
        names |= {"cancelled": JobStatus.CANCELED}
        return names.get(str(self.future.status), JobStatus.ERROR)

    def wait(self, timeout: float | None = None) -> UntrackedResult:
        """Wait until the call has ended. Raises TimeoutError after ``timeout`` seconds."""
        if self.future is not None:
            with contextlib.suppress(CancelledError):
                self.future.exception(timeout)
        return self

    def get(self, timeout: float | None = None) -> Any:
        """Return the value of the call, or raise its exception."""
        if self.future is None:
            value, error = self._value
            if error is not None:
                raise error
            return value
        if self.future.status == "cancelled":
            raise JobCanceled("The call was canceled.")
        return self.future.result(timeout)

    def log(self) -> str:
        """Return an empty text: without a job, the output stays in the worker's log."""
        return ""

    def cancel(self) -> None:
        """Cancel the call in Dask. A call that has begun continues."""
        if self.future is not None:
            self.future.cancel(force=True)

    def __repr__(self) -> str:
        return f"<UntrackedResult {self.id or 'run here'} {self.state}>"
