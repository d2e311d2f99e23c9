"""Access of a task to Girder: the client of its job, and the submission of child jobs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from girder_dask import config
from girder_dask.client.backend import Backend, use_backend, without_backend
from girder_dask.protocol.messages import JobSpec
from girder_dask.tasks.container_scope import ContainerScope
from girder_dask.tasks.running_job import JobManager, Request, RunningJob

__all__ = ["NO_ADDRESS", "child_jobs", "make_running_job", "open_session"]

#: The message to a job whose worker does not know the address of Girder.
NO_ADDRESS = (
    "This worker does not know the address of Girder, so the job can neither fetch nor upload "
    "files, nor start other jobs. The operator sets girder.api-url (DASK_GIRDER__API_URL) for the "
    "scheduler or for this worker, or dask.api_url or core.server_root in Girder."
)


def make_running_job(
    spec: JobSpec,
    *,
    manager: JobManager,
    work_dir: Callable[[], Path],
    hostname: str,
    api_url: str | None,
    gpus: Sequence[str] = (),
    container_scope: ContainerScope | None = None,
) -> RunningJob:
    """Return the running job of a task, with a client that uses the job's token.

    The client retries while Girder is unavailable.

    Parameters
    ----------
    work_dir
        Returns the directory of the run.
    api_url
        Girder's REST API as this worker reaches it, None without an address.
    """
    client = None
    if api_url is not None:
        from girder_dask.http.girder_client import GirderClient
        from girder_dask.http.session import make_retrying_session

        client = GirderClient(api_url, spec.token, make_retrying_session)
    request = Request(
        id=spec.id,
        attempt=spec.attempt,
        hostname=hostname,
        girder_api_url=api_url,
        gpus=tuple(gpus),
    )
    return RunningJob(
        id=spec.id,
        title=spec.title,
        job_manager=manager,
        girder_client=client,
        work_dir=work_dir,
        request=request,
        container_scope=container_scope,
    )


def open_session(job: RunningJob, attributes: Mapping[str, Any] | None) -> None:
    """Set attributes of the sessions of the job's client."""
    if job.girder_client is not None:
        job.girder_client.attributes = dict(attributes or {})


@contextlib.contextmanager
def child_jobs(
    api_url: str | None,
    token: str | None,
    dask_client: Callable[[], Any] | None,
    job: RunningJob | None = None,
) -> Iterator[None]:
    """Have ``delay()`` in the block record child jobs, with this token of their parent.

    Its requests to Girder have the attributes of the sessions of the job's client.
    """
    if api_url is None or token is None:
        with without_backend(NO_ADDRESS):
            yield
        return

    def make() -> Any:
        from girder_dask.client.rest_backend import RestBackend

        client = None if job is None else job.girder_client
        return RestBackend(
            api_url,
            token=token,
            dask_client=dask_client,
            retry_time_s=config.seconds("worker.retry-time"),
            is_durable=True,
            session=None if client is None else client.attributes,
        )

    backend = _LazyProxy(make)
    try:
        with use_backend(cast("Backend", backend)):
            yield
    finally:
        backend.close()


class _LazyProxy:
    """A proxy of an object that is created on first use: few tasks start other jobs."""

    def __init__(self, create: Callable[[], Any]) -> None:
        self._create = create
        self._target: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self._target is None:
            self._target = self._create()
        return getattr(self._target, name)

    def close(self) -> None:
        """Close the object if it was created."""
        if self._target is not None and callable(getattr(self._target, "close", None)):
            self._target.close()
