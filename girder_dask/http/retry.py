"""Retries of requests while Girder is unavailable, for a limited time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

import requests

from girder_dask import config
from girder_dask.http.redirects import StorageServerError, refuse_redirect
from girder_dask.http.request_errors import TRANSIENT_STATUSES, is_transient, status_of
from girder_dask.utils.backoff import Backoff

__all__ = ["TIMEOUT_S", "RetryBudget", "get_json", "health_probe", "post_json", "retry"]

logger = logging.getLogger(__name__)

#: Seconds that a connection may take, and that Girder may be silent.
TIMEOUT_S = (10, 60)

_BACKOFF = Backoff(0.25, 15.0)
_MAX_SLEEP_S = 0.2  # an interruption of the job takes effect between two sleeps
_MAX_INTERNAL_ERRORS = 3  # of one request, while other requests succeed
_LOG_DELAY_S = 5.0  # before the log says that Girder is unavailable
_INTERNAL_ERROR = 500

_T = TypeVar("_T")


class RetryBudget:
    """The time for which one transfer is retried without progress.

    Parameters
    ----------
    limit_s
        Seconds. By default ``girder.worker.retry-time``.
    probe
        Makes a request that needs only Girder's database, and returns the status. After an
        internal error it tells a failing Girder from a single request that always fails.
    statuses
        The statuses that are retried.
    backoff
        The delays between tries.
    is_silent
        Whether the unavailability of Girder is not logged.
    """

    def __init__(
        self,
        limit_s: float | None = None,
        probe: Callable[[], int] | None = None,
        *,
        statuses: frozenset[int] = TRANSIENT_STATUSES,
        backoff: Backoff = _BACKOFF,
        is_silent: bool = False,
    ) -> None:
        self._limit_s = config.seconds("worker.retry-time") if limit_s is None else limit_s
        self._probe = probe
        self._statuses = statuses
        self._backoff = backoff
        self._is_silent = is_silent
        self.progress()

    def progress(self) -> None:
        """Start the budget again, since bytes have come through."""
        self._since: float | None = None
        self._delays_s = self._backoff.delays_s()
        self._internal_errors = 0
        self._is_logged = self._is_silent

    def wait(self, error: Exception) -> None:
        """Wait before the next try.

        Raises
        ------
        Exception
            The error, if it is permanent or the budget is spent.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        left_s = self._since + self._limit_s - now
        if left_s <= 0 or not is_transient(error, self._statuses):
            raise error
        if status_of(error) == _INTERNAL_ERROR and not self._is_girder_failing(error):
            self._internal_errors += 1
            if self._internal_errors >= _MAX_INTERNAL_ERRORS:
                raise error
        if now - self._since > _LOG_DELAY_S and not self._is_logged:
            self._is_logged = True
            host = error.host if isinstance(error, StorageServerError) else "Girder"
            logger.warning("%s is unavailable (%s). Retrying for %g s.", host, error, self._limit_s)
        until = now + min(next(self._delays_s), left_s)
        while (left_s := until - time.monotonic()) > 0:
            time.sleep(min(left_s, _MAX_SLEEP_S))

    def _is_girder_failing(self, error: Exception) -> bool:
        """Return True if a request that needs only Girder's database fails as well."""
        if self._probe is None or isinstance(error, StorageServerError):
            return False
        try:
            return self._probe() >= _INTERNAL_ERROR
        except requests.HTTPError as e:
            return (status_of(e) or _INTERNAL_ERROR) >= _INTERNAL_ERROR
        except requests.RequestException:
            return True


def retry(request: Callable[[], _T], gc: Any = None) -> _T:
    """Return what a request returns, and repeat it while Girder is unavailable.

    Parameters
    ----------
    request
        A function that may be called twice without harm.
    gc
        The client that makes the request.

    Raises
    ------
    requests.RequestException
        If Girder refuses, or stays away for ``girder.worker.retry-time``.
    """
    budget = RetryBudget(probe=None if gc is None else health_probe(gc))
    while True:
        try:
            return request()
        except requests.RequestException as e:
            budget.wait(e)


def get_json(gc: Any, path: str, parameters: dict[str, Any] | None = None) -> Any:
    """Return Girder's answer to a GET request; raises what :func:`retry` does."""
    return retry(lambda: _answered(gc, "GET", path, parameters or {}), gc)


def post_json(gc: Any, path: str, parameters: dict[str, Any]) -> Any:
    """Return Girder's answer to a POST request that may be repeated, as :func:`get_json` does."""
    return retry(lambda: _answered(gc, "POST", path, parameters), gc)


def health_probe(gc: Any) -> Callable[[], int]:
    """Return a function whose request needs only Girder's database. It returns the status."""
    return lambda: int(_sent(gc, "GET", "user/me", {}).status_code)


def _answered(gc: Any, method: str, path: str, parameters: dict[str, Any]) -> Any:
    answer = _sent(gc, method, path, parameters)
    refuse_redirect(answer)
    return answer.json()


def _sent(gc: Any, method: str, path: str, parameters: dict[str, Any]) -> requests.Response:
    answer: requests.Response = gc.sendRestRequest(
        method, path, parameters, jsonResp=False, timeout=TIMEOUT_S, allow_redirects=False
    )
    return answer
