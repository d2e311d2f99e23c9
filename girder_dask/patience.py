"""How long a transfer to or from Girder is tried again, and when it is given up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import requests

from girder_dask import config

__all__ = ["TIMEOUT", "Elsewhere", "Patience", "again", "ask", "is_transient", "was_not_sent"]

logger = logging.getLogger(__name__)

#: Seconds that a connection may take, and that Girder may be silent.
TIMEOUT = (10, 60)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0
_NAP = 0.2  # an interruption comes through between two naps
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_MOST_500 = 3  # by a Girder that is well otherwise: then something stays broken
_QUIET = 5.0  # seconds before the log says that Girder is away
_API = "/api/v1/"
_SERVER_ERROR = 500

_T = TypeVar("_T")


class Elsewhere(requests.RequestException):
    """The place failed to which Girder sends those who want a file.

    The address is not told: it may hold what signs it.

    Parameters
    ----------
    host
        Its host.
    error
        What happened.
    """

    def __init__(self, host: str, error: requests.RequestException) -> None:
        response = error.response
        what = f"did not answer ({type(error).__name__})"
        if response is not None:
            what = f"answered {response.status_code} {response.reason}"
        super().__init__(
            f"Girder says that the file is at {host}, which {what}. Ask whoever keeps files there.",
            response=response,
        )


class Patience:
    """The time that one transfer may be without progress.

    Parameters
    ----------
    limit
        Seconds. By default ``girder.worker.retry-time``.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._limit = config.seconds("worker.retry-time") if limit is None else limit
        self.progress()

    def progress(self) -> None:
        """Begin anew, as something has come through."""
        self._since: float | None = None
        self._pause = _FIRST_PAUSE
        self._internal = 0
        self._is_told = False

    def wait(self, error: Exception) -> None:
        """Wait before the next try.

        Raises
        ------
        Exception
            The error, if it stays, or if the time is over.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if not is_transient(error) or now - self._since + self._pause > self._limit:
            raise error
        if _status(error) == 500 and not _is_away(error):
            self._internal += 1
            if self._internal >= _MOST_500:
                raise error
        if now - self._since > _QUIET and not self._is_told:
            self._is_told = True
            logger.warning("Girder is away (%s). It is asked again for %g s.", error, self._limit)
        until = now + self._pause
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _NAP))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)


def is_transient(error: Exception) -> bool:
    """Say whether a request may work when it is made again.

    >>> is_transient(requests.ConnectionError()), is_transient(requests.exceptions.InvalidURL())
    (True, False)
    """
    status = _status(error)
    if status is not None:
        return status in _TRANSIENT
    broken = (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )
    return isinstance(error, broken)


def _is_away(error: Exception) -> bool:
    """Say whether Girder has internal errors also where nothing but its database is asked."""
    request = getattr(getattr(error, "response", None), "request", None)
    place, found, _ = str(getattr(request, "url", None)).partition(_API)
    if request is None or not found:
        return False
    headers = {"Girder-Token": request.headers.get("Girder-Token", "")}
    try:
        answer = requests.get(f"{place}{_API}user/me", headers=headers, timeout=TIMEOUT)
    except requests.RequestException:
        return True
    return int(answer.status_code) >= _SERVER_ERROR


def was_not_sent(error: Exception) -> bool:
    """Say whether Girder surely has done nothing of a request that failed."""
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    reason = error.args[0] if error.args else None
    reason = getattr(reason, "reason", reason)
    return _status(error) == 503 or isinstance(reason, (NewConnectionError, ConnectTimeoutError))


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def again(request: Callable[[], _T]) -> _T:
    """Return what a request returns, and make it again while Girder is away.

    Parameters
    ----------
    request
        What may be done twice without harm.

    Raises
    ------
    requests.RequestException
        If Girder refuses, or stays away.
    """
    patience = Patience()
    while True:
        try:
            return request()
        except requests.RequestException as e:
            patience.wait(e)


def ask(gc: Any, path: str, parameters: dict[str, Any] | None = None) -> Any:
    """Return what Girder answers to a GET request, and ask again while it is away.

    Raises
    ------
    requests.RequestException
        If it refuses, or stays away.
    """
    patience = Patience()
    while True:
        try:
            answer = gc.sendRestRequest(
                "GET", path, parameters or {}, jsonResp=False, timeout=TIMEOUT
            )
            return answer.json()
        except requests.RequestException as e:
            patience.wait(e)
