"""Classification of request errors: transient or not, sent or not, and their causes."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import requests

from girder_dask.http.redirects import ExplainedRequestError, StorageServerError

__all__ = [
    "GATEWAY_STATUSES",
    "TRANSIENT_STATUSES",
    "certificate_error",
    "error_cause",
    "error_message",
    "has_no_content",
    "is_transient",
    "is_unsent",
    "status_of",
]

#: The statuses of a proxy while Girder restarts behind it.
GATEWAY_STATUSES = frozenset({502, 503, 504})
#: All statuses that may change when the request is repeated.
TRANSIENT_STATUSES = GATEWAY_STATUSES | {408, 425, 429, 500}

_NO_CONTENT = "file-does-not-exist"  # the end of Girder's identifier
_REFUSED_BY_PROXY = "Tunnel connection failed: 4"
_CONNECTION_LOST = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError, TimeoutError)


def status_of(error: BaseException) -> int | None:
    """Return the status of the answer that an error is about, None if there was no answer."""
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def is_transient(error: Exception, statuses: frozenset[int] = TRANSIENT_STATUSES) -> bool:
    """Return True if a request may succeed when it is repeated.

    Parameters
    ----------
    error
        Why it failed.
    statuses
        The transient statuses.

    Examples
    --------
    >>> is_transient(requests.ConnectionError()), is_transient(requests.exceptions.InvalidURL())
    (True, False)
    """
    if isinstance(error, StorageServerError):
        return is_transient(error.error, statuses)
    if isinstance(error, ExplainedRequestError):
        return False
    status = status_of(error)
    if status is not None:
        return status in statuses and not has_no_content(error)
    if isinstance(error, requests.exceptions.ProxyError):
        return not any(_REFUSED_BY_PROXY in str(each) for each in _wrapped(error))
    if isinstance(error, requests.exceptions.SSLError):
        # A broken connection, and neither a certificate nor a server without TLS.
        return any(isinstance(each, _CONNECTION_LOST) for each in _wrapped(error))
    broken = (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )
    return isinstance(error, broken)


def is_unsent(error: Exception) -> bool:
    """Return True if a request failed before there was a connection, so that Girder never saw it.

    No status proves that. A 503 comes from a proxy that reaches no Girder, but also from a Girder
    that loses its database in the middle of the request.
    """
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    reason = error.args[0] if error.args else None
    reason = getattr(reason, "reason", reason)
    return isinstance(reason, (NewConnectionError, ConnectTimeoutError))


def has_no_content(error: Exception) -> bool:
    """Return True if Girder answers that a file is missing in its assetstore."""
    response = getattr(error, "response", None)
    try:
        answer = None if response is None else response.json()
    except (ValueError, RuntimeError, requests.RequestException):
        return False
    identifier = answer.get("identifier") if isinstance(answer, dict) else None
    return isinstance(identifier, str) and identifier.endswith(_NO_CONTENT)


def certificate_error(error: BaseException) -> ssl.SSLCertVerificationError | None:
    """Return what OpenSSL says about a certificate, None if the error has another reason."""
    for each in _wrapped(error):
        if isinstance(each, ssl.SSLCertVerificationError):
            return each
    return None


def error_message(response: requests.Response | None, default: str | None = None) -> str:
    """Return Girder's own message in an answer, else the default or the status in words."""
    try:
        return str(response.json()["message"])  # type: ignore[union-attr]
    except (AttributeError, ValueError, KeyError, TypeError):
        if default is not None:
            return default
        return getattr(response, "reason", None) or "no reason given"


def error_cause(error: BaseException) -> str:
    """Return the innermost reason of an error, without addresses of objects.

    Examples
    --------
    >>> error_cause(requests.ConnectionError(OSError(111, 'Connection refused')))
    '[Errno 111] Connection refused'
    """
    text, seen = str(error), set[int]()
    inner: object = error
    while isinstance(inner, BaseException) and id(inner) not in seen:
        seen.add(id(inner))
        text = str(inner) or text
        inner = inner.__cause__ or getattr(inner, "reason", None) or next(iter(inner.args), None)
    if "object at 0x" in text or text.startswith("HTTP"):
        text = text.rpartition(": ")[2]
    return text.rstrip(".")


def _wrapped(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and those that libraries have wrapped in it."""
    todo, seen = [error], set()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        inner = [*each.args[:1], getattr(each, "reason", None), each.__cause__, each.__context__]
        todo += [found for found in inner if isinstance(found, BaseException)]
