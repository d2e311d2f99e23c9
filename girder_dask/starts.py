"""The one start of a task that may run at most once."""

from __future__ import annotations

from typing import Any

import requests

from girder_dask.errors import AlreadyBegun
from girder_dask.patience import TIMEOUT, again

__all__ = ["begin"]

_CONFLICT = 409


def begin(gc: Any, job_id: str, *, attempt: int, run: str, worker: str) -> None:
    """Let Girder note that a run calls its function now, and that no other one may.

    The note is made before the call. So a function that runs at most once may not run at all:
    if the worker dies between the two, nobody knows on which side of the call it was.

    Parameters
    ----------
    gc
        A ``girder_client.GirderClient`` of the job.
    job_id
        The id of the job.
    attempt
        Which attempt of the job it is.
    run
        What tells this run from any other. The same run may ask again.
    worker
        The name of the worker, for whoever asks later.

    Raises
    ------
    AlreadyBegun
        If another run has begun.
    requests.RequestException
        If Girder refuses for another reason, or stays away for ``girder.worker.retry-time``.
    """
    given = {"attempt": attempt, "run": run, "worker": worker}
    try:
        again(
            lambda: gc.sendRestRequest(
                "POST", f"dask/job/{job_id}/begin", given, jsonResp=False, timeout=TIMEOUT
            )
        )
    except requests.HTTPError as e:
        if e.response is None or e.response.status_code != _CONFLICT:
            raise
        raise AlreadyBegun(e.response.json()["message"], job_id=job_id) from None
