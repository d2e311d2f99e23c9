"""How long a transfer to or from Girder is tried again, and when it is given up."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import requests

from girder_dask import config
from girder_dask.http.redirects import ExplainedRequestError, StorageServerError, refuse_redirect

__all__ = [
    "TIMEOUT_S",
    "RetryBudget",
    "certificate_problem",
    "get_json",
    "has_no_content",
    "health_probe",
    "is_transient",
    "is_unsent",
    "retry",
]

logger = logging.getLogger(__name__)

#: Seconds that a connection may take, and that Girder may be silent.
TIMEOUT_S = (10, 60)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 15.0
_NAP = 0.2  # an interruption comes through between two naps
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_MOST_500 = 3  # by a Girder that is well otherwise: then something stays broken
_QUIET = 5.0  # seconds before the log says that Girder is away
_SERVER_ERROR = 500
_NO_CONTENT = "file-does-not-exist"  # the end of Girder's identifier
_REFUSED_BY_PROXY = "Tunnel connection failed: 4"
_GONE = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError, TimeoutError)

_T = TypeVar("_T")


class RetryBudget:
    """The time that one transfer may be without progress.

    Parameters
    ----------
    limit
        Seconds. By default ``girder.worker.retry-time``.
    probe
        Makes a request that only asks Girder's database, and returns its status: after an
        internal error it tells whether Girder as a whole is not well.
    """

    def __init__(self, limit: float | None = None, probe: Callable[[], int] | None = None) -> None:
        self._limit = config.seconds("worker.retry-time") if limit is None else limit
        self._probe = probe
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
        if _status(error) == _SERVER_ERROR and not self._is_away(error):
            self._internal += 1
            if self._internal >= _MOST_500:
                raise error
        if now - self._since > _QUIET and not self._is_told:
            self._is_told = True
            who = error.host if isinstance(error, StorageServerError) else "Girder"
            logger.warning("%s is away (%s). It is asked again for %g s.", who, error, self._limit)
        until = now + self._pause
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _NAP))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _is_away(self, error: Exception) -> bool:
        """Say whether Girder has internal errors also where nothing but its database is asked."""
        if self._probe is None or isinstance(error, StorageServerError):
            return False
        try:
            return self._probe() >= _SERVER_ERROR
        except requests.HTTPError as e:
            return (_status(e) or _SERVER_ERROR) >= _SERVER_ERROR
        except requests.RequestException:
            return True


def is_transient(error: Exception) -> bool:
    """Say whether a request may work when it is made again.

    >>> is_transient(requests.ConnectionError()), is_transient(requests.exceptions.InvalidURL())
    (True, False)
    """
    if isinstance(error, StorageServerError):
        return is_transient(error.error)
    if isinstance(error, ExplainedRequestError):
        return False
    status = _status(error)
    if status is not None:
        return status in _TRANSIENT and not has_no_content(error)
    if isinstance(error, requests.exceptions.ProxyError):
        return not any(_REFUSED_BY_PROXY in str(each) for each in _reasons(error))
    if isinstance(error, requests.exceptions.SSLError):
        # Not of a certificate, nor of what is no TLS: the other side has gone.
        return any(isinstance(each, _GONE) for each in _reasons(error))
    broken = (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )
    return isinstance(error, broken)


def has_no_content(error: Exception) -> bool:
    """Say whether Girder answers that a file is not where its assetstore should have it."""
    response = getattr(error, "response", None)
    try:
        said = None if response is None else response.json()
    except (ValueError, RuntimeError, requests.RequestException):
        return False
    identifier = said.get("identifier") if isinstance(said, dict) else None
    return isinstance(identifier, str) and identifier.endswith(_NO_CONTENT)


def _reasons(error: BaseException) -> Iterator[BaseException]:
    """Return an error, and those within that libraries have wrapped."""
    todo, seen = [error], set()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inner = [*each.args[:1], getattr(each, "reason", None), each.__cause__, each.__context__]
        todo += [found for found in inner if isinstance(found, BaseException)]


def certificate_problem(error: BaseException) -> str | None:
    """Return what is wrong with a certificate, None if an error is of something else."""
    for each in _reasons(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            return str(each.verify_message)
    return None


def is_unsent(error: Exception) -> bool:
    """Say whether Girder surely has done nothing of a request that failed."""
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    reason = error.args[0] if error.args else None
    reason = getattr(reason, "reason", reason)
    return _status(error) == 503 or isinstance(reason, (NewConnectionError, ConnectTimeoutError))


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def retry(request: Callable[[], _T], gc: Any = None) -> _T:
    """Return what a request returns, and make it again while Girder is away.

    Parameters
    ----------
    request
        What may be done twice without harm.
    gc
        The client that makes it.

    Raises
    ------
    requests.RequestException
        If Girder refuses, or stays away.
    """
    patience = RetryBudget(probe=None if gc is None else health_probe(gc))
    while True:
        try:
            return request()
        except requests.RequestException as e:
            patience.wait(e)


def get_json(gc: Any, path: str, parameters: dict[str, Any] | None = None) -> Any:
    """Return what Girder answers to a GET request, and ask again while it is away.

    Raises
    ------
    requests.RequestException
        If it refuses, or stays away.
    """
    patience = RetryBudget(probe=health_probe(gc))
    while True:
        try:
            answer = gc.sendRestRequest(
                "GET",
                path,
                parameters or {},
                jsonResp=False,
                timeout=TIMEOUT_S,
                allow_redirects=False,
            )
            refuse_redirect(answer)
            return answer.json()
        except requests.RequestException as e:
            patience.wait(e)


def health_probe(gc: Any) -> Callable[[], int]:
    """Return a request of a client that asks Girder's database alone, and returns its status."""

    def probe() -> int:
        answer = gc.sendRestRequest(
            "GET", "user/me", jsonResp=False, timeout=TIMEOUT_S, allow_redirects=False
        )
        return int(answer.status_code)

    return probe
