"""A call that runs without a job: ``girder_job_disable=True``.

It runs on the Dask cluster where one is known, and here and now where none is. Nothing of
it is recorded in Girder.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from girder_dask.client.backend import get_backend
from girder_dask.errors import JobCanceled, NotConnectedError, TransformError
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.protocol.payload import open_call
from girder_dask.protocol.transform_types import is_transform
from girder_dask.tasks.completion import completed
from girder_dask.utils.pytree import tree_map

if TYPE_CHECKING:
    from distributed import Future

__all__ = ["UntrackedResult", "run", "start"]


def run(payload: bytes) -> Any:
    """Open a packed call and run it. This is the function that Dask is given."""
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


def start(name: str, payload: bytes, placement: Mapping[str, Any]) -> UntrackedResult:
    """Run a packed call on the cluster that is known here, else at once in this process.

    Raises
    ------
    SchedulerError
        If there is a Girder, but its scheduler cannot be reached.
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
        retries=placement["retries"] or None,
        resources=placement["resources"] and dict(placement["resources"]),
        priority=placement["priority"],
    )
    fire_and_forget(future)
    return UntrackedResult(future=future)


def _outcome(payload: bytes) -> tuple[Any, Exception | None]:
    try:
        return run(payload), None
    except Exception as e:  # noqa: BLE001 - get() raises it
        return None, e


class UntrackedResult:
    """The result of a call that has no job. It has the methods of a ``JobResult``."""

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
        """The Dask key of the call, None if it ran here."""
        return None if self.future is None else str(self.future.key)

    @property
    def task_id(self) -> str | None:
        """The same, under the name that Celery has for it."""
        return self.id

    @property
    def status(self) -> JobStatus:
        """The state that a job of this call would have."""
        if self.future is None:
            return JobStatus.SUCCESS if self._value[1] is None else JobStatus.ERROR
        names = {"finished": JobStatus.SUCCESS, "pending": JobStatus.QUEUED}
        names |= {"cancelled": JobStatus.CANCELED}
        return names.get(str(self.future.status), JobStatus.ERROR)

    @property
    def state(self) -> str:
        """The name of that state."""
        return self.status.name

    def ready(self) -> bool:
        """Say whether the call has ended."""
        return self.status in FINAL

    def successful(self) -> bool:
        """Say whether the call has returned."""
        return self.status == JobStatus.SUCCESS

    def failed(self) -> bool:
        """Say whether the call has raised."""
        return self.status == JobStatus.ERROR

    def wait(self, timeout: float | None = None) -> UntrackedResult:
        """Wait for the end of the call. Raises TimeoutError if it takes longer."""
        if self.future is not None:
            with contextlib.suppress(CancelledError):
                self.future.exception(timeout)
        return self

    def get(self, timeout: float | None = None) -> Any:
        """Return what the function returned, or raise what it raised."""
        if self.future is None:
            value, error = self._value
            if error is not None:
                raise error
            return value
        if self.future.status == "cancelled":
            raise JobCanceled("The call was canceled.")
        return self.future.result(timeout)

    def log(self) -> str:
        """Return the empty text: without a job the output stays on the worker."""
        return ""

    def cancel(self) -> None:
        """Have Dask drop the call. What runs already goes on."""
        if self.future is not None:
            self.future.cancel(force=True)

    def revoke(self, **_options: Any) -> None:
        """Do what :meth:`cancel` does."""
        self.cancel()

    def __repr__(self) -> str:
        return f"<UntrackedResult {self.id or 'run here'} {self.state}>"
