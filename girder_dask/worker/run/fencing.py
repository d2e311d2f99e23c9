"""Fencing of runs: no two share an attempt, and none repeats the call of an at-most-once job."""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections.abc import Callable
from typing import Any

import requests

from girder_dask.errors import AlreadyBegun
from girder_dask.http.retry import post_json
from girder_dask.utils.backoff import Backoff

__all__ = ["StartAnswer", "await_recorded_attempt", "record_start"]

logger = logging.getLogger(__name__)

#: The scheduler's answer: True if the attempt may start, False if it is over, None to ask again.
StartAnswer = concurrent.futures.Future[bool | None]

_HTTP_CONFLICT = 409
# Between two checks whether a waiting run must end.
_CHECK_INTERVAL_S = 0.1
# Between two requests to the scheduler.
_ASK_BACKOFF = Backoff(first_s=0.5, max_s=0.5)


def await_recorded_attempt(ask: Callable[[], StartAnswer], check: Callable[[], None]) -> bool:
    """Wait until Girder has recorded the number of an attempt, so that no other run gets it.

    The first attempt has its number from Girder. The scheduler counts those that follow; if it
    is lost before Girder has recorded one, the next scheduler would count it again.

    Parameters
    ----------
    ask
        Asks the scheduler whether the attempt may start.
    check
        Called regularly; raises when the run must end.

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
                concurrent.futures.wait([asked], _CHECK_INTERVAL_S)
        finally:
            asked.cancel()
        check()
        try:
            answer = asked.result()
        except Exception as e:  # noqa: BLE001 - the scheduler is asked again after any error
            logger.debug("The scheduler did not answer (%r); trying again", e)
        else:
            if answer is not None:
                return answer
        time.sleep(_ASK_BACKOFF.delay_s(1))


def record_start(gc: Any, job_id: str, *, attempt: int, run: str, worker: str) -> None:
    """Have Girder record that a run is about to call its function, so that no other run does.

    The record precedes the call. If the worker dies between the two, it is unknown whether the
    function was called, so a job that runs at most once may not run at all.

    Parameters
    ----------
    gc
        A ``girder_client.GirderClient`` of the job.
    job_id
        The id of the job.
    attempt
        The number of the attempt.
    run
        The id of the run. The same run may repeat the request.
    worker
        The name of the worker, for the error of later runs.

    Raises
    ------
    AlreadyBegun
        If another run has called the function.
    requests.RequestException
        If Girder refuses for another reason, or is unavailable for ``girder.worker.retry-time``.
    """
    body = {"attempt": attempt, "run": run, "worker": worker}
    try:
        post_json(gc, f"dask/job/{job_id}/begin", body)
    except requests.HTTPError as e:
        if e.response is None or e.response.status_code != _HTTP_CONFLICT:
            raise
        raise AlreadyBegun(e.response.json()["message"], job_id=job_id) from None
