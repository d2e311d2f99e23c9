"""Dask futures of the values of jobs.

A future in this process pins the value of its job on the cluster. Girder's jobs belong to the
scheduler's own client, so the scheduler has to register ours (RPC ``girder_pin``). It returns the
key.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from girder_dask.client.backend import Backend, get_backend
from girder_dask.errors import ResultUnavailable, SchedulerError
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.protocol.messages import StoredResult
from girder_dask.protocol.payload import NotOpened, open_value
from girder_dask.utils.background import log_failure

if TYPE_CHECKING:
    from distributed import Client, Future

    from girder_dask.client.result import JobResult

__all__ = ["future_of", "pin"]

logger = logging.getLogger(__name__)

# The scheduler waits up to 5 s for a job that it has not received yet, unless the job has ended.
_RPC_TIMEOUT_S = 15.0
# Between two requests for the result of a job whose end Girder has not recorded yet.
_POLL_INTERVAL_S = 0.05


def future_of(job_id: str) -> Future[Any]:
    """Return a Dask future of the value of a job.

    Raises
    ------
    SchedulerError
        If no Dask scheduler is known here, or it does not answer.
    ResultUnavailable
        If neither the cluster nor Girder has the value, or if the job is another user's: a
        future would unpickle its value.
    GirderError
        If the user may not read the job.
    """
    backend = get_backend()
    client = backend.dask_client()
    has_ended = _check_access(backend, job_id) in FINAL
    deadline = time.monotonic() + _RPC_TIMEOUT_S
    while True:
        key = _key(backend, client, job_id, wait=not has_ended)
        if key is not None:
            return _future_of_key(client, key)
        # The scheduler has finished the job. Its update may be on the way to Girder.
        stored = backend.load_result(job_id)
        if stored.status in (None, *FINAL) or time.monotonic() >= deadline:
            return _scattered(backend, client, job_id, stored)
        time.sleep(_POLL_INTERVAL_S)


def _key(backend: Backend, client: Client, job_id: str, *, wait: bool) -> str | None:
    """Return the key of a job's value. None if the scheduler does not have it."""
    try:
        keys: dict[str, str] = cast("Any", client.sync)(_pinned_keys, client, [job_id], wait=wait)
    except (OSError, ValueError, AttributeError, RuntimeError) as e:
        raise SchedulerError(
            f"The Dask scheduler at {backend.scheduler_address()} does not return the key of the "
            f"value of job {job_id} ({type(e).__name__}: {e}). 'girder-dask doctor' shows whether "
            "it is the one that runs Girder's jobs."
        ) from e
    return keys.get(job_id)


def _check_access(backend: Backend, job_id: str) -> int:
    """Raise unless the user may have the future of a job, and return the state of the job."""
    # The scheduler itself returns any value to any client.
    known = backend.load_jobs([job_id]) or [backend.load_job(job_id)]
    if getattr(backend, "pins", False) and not backend.unpickles(known[0]):
        raise ResultUnavailable(
            f"Job {job_id} is not yours, and a future would unpickle its value, which can run code "
            "of its owner. get() returns it if it is plain.",
            job_id=job_id,
        )
    return int(known[0]["status"])


def pin(backend: Backend, results: Sequence[JobResult]) -> None:
    """Begin to pin the values of new jobs, if the backend does so. Returns at once."""
    if not getattr(backend, "pins", False):
        return
    client = backend.dask_client()
    references = {result.id: weakref.ref(result) for result in results}
    loop = cast("Any", client.loop).asyncio_loop
    holding = asyncio.run_coroutine_threadsafe(_pin(client, references), loop)
    log_failure(holding, logger, "Pinning the values of jobs")


async def _pin(client: Client, references: dict[str, weakref.ref[JobResult]]) -> None:
    try:
        keys = await _pinned_keys(client, list(references))
    except Exception as e:  # noqa: BLE001 - the request is repeated when a value is needed
        logger.info("The values of %d jobs are not pinned (%s).", len(references), e)
        return
    for job_id, key in keys.items():
        result = references[job_id]() if job_id in references else None
        # Without a result, the future is dropped at once, and the scheduler releases the value.
        future = _future_of_key(client, key)
        if result is not None:
            result._pin(future)  # noqa: SLF001 - of this package


async def _pinned_keys(client: Client, job_ids: list[str], *, wait: bool = True) -> dict[str, str]:
    """Register this client with the scheduler, and return the keys of the jobs that it knows."""
    scheduler: Any = client.scheduler
    async with asyncio.timeout(_RPC_TIMEOUT_S):
        answer = await scheduler.girder_pin(jobs=job_ids, client=client.id, wait=wait)
    if not isinstance(answer, dict) or answer.get("status") == "error":
        raise ValueError(f"it answered {answer!r}")
    return {str(job): str(key) for job, key in answer.items()}


def _future_of_key(client: Client, key: str) -> Future[Any]:
    """Return a future of a key that the scheduler has pinned for this client."""
    from distributed import Future

    future: Future[Any] = Future(key, client)
    # Now that there is a future, the scheduler sends the state of the key again.
    message = {"op": "client-desires-keys", "keys": [key], "client": client.id}
    cast("Any", client)._send_to_scheduler(message)  # noqa: SLF001 - what Dask's own futures do
    return future


def _scattered(backend: Backend, client: Client, job_id: str, stored: StoredResult) -> Future[Any]:
    """Return a future of a value that only Girder stores."""
    if stored.value is not None:
        try:
            value = open_value(stored.value, unpickle=backend.unpickles({"_id": job_id}))
        except NotOpened as e:
            raise ResultUnavailable(
                f"The value of job {job_id} is not on the Dask cluster, and {e}.", job_id=job_id
            ) from e
        # In a list, so that a dict or a list becomes one future.
        (future,) = cast("Any", client).scatter([value], hash=False)
        return cast("Future[Any]", future)
    why = f" ({stored.error})" if stored.error else ""
    if stored.status not in (None, JobStatus.SUCCESS):
        why = f": the job is {JobStatus(stored.status).name}{why}"
    raise ResultUnavailable(
        f"The value of job {job_id} is not on the Dask cluster{why}.", job_id=job_id
    )
