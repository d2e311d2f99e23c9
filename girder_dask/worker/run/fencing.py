"""What a run asks before it calls its function."""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections.abc import Callable
from typing import Any

import requests

from girder_dask.errors import AlreadyBegun
from girder_dask.http.retry import post_json

__all__ = ["StartAnswer", "await_recorded_attempt", "record_start"]

logger = logging.getLogger(__name__)

#: What the scheduler says: the attempt may record_start, or is over; None: ask again.
StartAnswer = concurrent.futures.Future[bool | None]

_CONFLICT = 409
# Seconds between two looks whether a run that waits is to end, and before it asks again.
_LOOK = 0.1
_PAUSE = 0.5


def await_recorded_attempt(ask: Callable[[], StartAnswer], check: Callable[[], None]) -> bool:
    """Wait until Girder has the number of an attempt, so that no other run is given it.

    The first attempt has its number from Girder. The scheduler counts those that follow, and
    if it is lost before Girder has heard of one, the next scheduler counts from there.

    Parameters
    ----------
    ask
        Asks the scheduler.
    check
        Called now and then; raises when the run is to end.

    Returns
    -------
    bool
        False if the attempt is over.
    """
    while True:
        asked = ask()
        try:
            while not asked.done():
                check()
                concurrent.futures.wait([asked], _LOOK)
        finally:
            asked.cancel()
        check()
        try:
            answer = asked.result()
        except Exception as e:  # noqa: BLE001 - whatever it is, the scheduler is asked again
            logger.debug("The scheduler was not asked (%r); trying again", e)
        else:
            if answer is not None:
                return answer
        time.sleep(_PAUSE)


def record_start(gc: Any, job_id: str, *, attempt: int, run: str, worker: str) -> None:
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
        post_json(gc, f"dask/job/{job_id}/begin", given)
    except requests.HTTPError as e:
        if e.response is None or e.response.status_code != _CONFLICT:
            raise
        raise AlreadyBegun(e.response.json()["message"], job_id=job_id) from None
