"""The client of Girder's REST API: signing in, retries, and errors that say what happened."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import requests

from girder_dask.errors import GirderError, NotConnectedError, SubmissionError
from girder_dask.http.authorities import certificate_refusal
from girder_dask.http.redirects import ExplainedRequestError
from girder_dask.http.request_errors import (
    GATEWAY_STATUSES,
    TRANSIENT_STATUSES,
    error_cause,
    error_message,
    is_unsent,
    status_of,
)
from girder_dask.http.retry import TIMEOUT_S, RetryBudget
from girder_dask.http.session import GirderSession
from girder_dask.protocol.names import TOKEN_HEADER
from girder_dask.utils.backoff import Backoff
from girder_dask.utils.forks import reset_after_fork

__all__ = ["ApiClient", "encode_json", "json_object", "json_object_or_none"]

# A user may be waiting, so retries are more frequent than those of file transfers.
_BACKOFF = Backoff(0.1, 3.0)
_UNAUTHORIZED = 401


class ApiClient:
    """Signed requests to the REST API of one Girder. Any thread may make them.

    Parameters
    ----------
    url
        The REST API, for example ``https://girder.example.org/api/v1``.
    token
        A Girder token.
    api_key
        An API key. It is exchanged for a token before the first request, and again when Girder no
        longer knows the token.
    timeout_s
        Seconds that an answer may take.
    retry_time_s
        Seconds for which a request that may be repeated is retried while Girder does not answer.
    retry_internal_errors
        Whether internal errors of Girder are retried too, as in transfers of files.
    session
        Attributes of the ``requests.Session``, such as ``verify``.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        retry_time_s: float = 30.0,
        retry_internal_errors: bool = False,
        session: Mapping[str, Any] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._api_key = api_key
        self._token = token
        self._timeout_s = timeout_s
        self._retry_time_s = retry_time_s
        self._retry_internal_errors = retry_internal_errors
        self._is_closed = False
        self._attributes = dict(session or {})
        self._disconnect()
        reset_after_fork(self, ApiClient._disconnect)

    def _disconnect(self) -> None:
        self._session: requests.Session | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def close(self) -> None:
        """Close the connections, and forget the token and the API key."""
        self._is_closed = True
        self._token = self._api_key = None
        if self._session is not None:
            self._session.close()

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        repeat: bool = True,
        signed: bool = True,
        retry_time_s: float | None = None,
        read: Callable[[requests.Response], Any] | None = None,
    ) -> Any:
        """Make a request and return the JSON object of the answer, or None for ``null``.

        Parameters
        ----------
        method, path
            The HTTP method, and the path without ``/api/v1/``.
        body
            The mapping to send as JSON, or the JSON itself.
        repeat
            Whether Girder may get the request twice. Otherwise it is repeated only if Girder did
            not see it.
        signed
            Whether the request carries the token.
        retry_time_s
            Overrides the client's.
        read
            Reads an answer, instead of its JSON object.

        Raises
        ------
        GirderError
            If Girder refuses or does not answer.
        SubmissionError
            If the body cannot be written as JSON.
        NotConnectedError
            If the client is closed.
        """
        if self._is_closed:
            raise NotConnectedError(f"The connection to Girder at {self.url} was closed.")
        data = _encoded(body) if isinstance(body, Mapping) else body
        send = self._send_signed if signed else self._send
        budget = self._budget(self._retry_time_s if retry_time_s is None else retry_time_s)
        while True:
            try:
                return (read or json_object_or_none)(send(method, path, data))
            except GirderError as e:
                failure, cause = e, e.__cause__
            if not isinstance(cause, requests.RequestException):
                raise failure
            if not (repeat or is_unsent(cause)):
                raise failure
            try:
                budget.wait(cause)
            except requests.RequestException:
                raise failure from cause

    def get_text(self, path: str) -> str:
        """Return the text at a path; raises what :meth:`request` does."""
        text: str = self.request("GET", path, read=lambda answer: answer.content.decode())
        return text

    def _budget(self, limit_s: float) -> RetryBudget:
        if self._retry_internal_errors:
            return RetryBudget(limit_s, self._probe, statuses=TRANSIENT_STATUSES)
        return RetryBudget(limit_s, statuses=GATEWAY_STATUSES, backoff=_BACKOFF, is_silent=True)

    def _send_signed(self, method: str, path: str, data: bytes | None) -> requests.Response:
        token = self._token or self._sign_in(None)
        try:
            return self._send(method, path, data, token)
        except GirderError as e:
            if e.status != _UNAUTHORIZED or self._api_key is None:
                raise
        # Girder does nothing for a request whose token it does not know.
        return self._send(method, path, data, self._sign_in(token))

    def _sign_in(self, stale: str | None) -> str | None:
        """Return a token other than the stale one: a new one, or that of another thread."""
        with self._lock:
            if self._token != stale or self._api_key is None:
                return self._token
            answer = json_object(self._send("POST", "api_key/token", {"key": self._api_key}))
            try:
                self._token = str(answer["authToken"]["token"])
            except (KeyError, TypeError) as e:
                raise GirderError(
                    f"{self.url} returned no token for the API key; is it Girder?"
                ) from e
            return self._token

    def _send(
        self,
        method: str,
        path: str,
        data: bytes | dict[str, str] | None,
        token: str | None = None,
    ) -> requests.Response:
        """Send JSON, or the fields of a form, once. Every failure is a GirderError."""
        headers = {"Content-Type": "application/json"} if isinstance(data, bytes) else {}
        if token is not None:
            headers[TOKEN_HEADER] = token
        try:
            response = self._connect().request(
                method, f"{self.url}/{path}", data=data, headers=headers, timeout=self._timeout_s
            )
            if not response.ok:
                raise requests.HTTPError(response=response)
        except requests.RequestException as e:
            raise GirderError(self._explanation(method, path, e), status=status_of(e)) from e
        return response

    def _explanation(self, method: str, path: str, error: requests.RequestException) -> str:
        if isinstance(error, ExplainedRequestError):
            return str(error)
        refused = certificate_refusal(error, self.url)
        if refused is not None:
            return refused
        if error.response is None:
            return f"Girder does not answer at {self.url} ({error_cause(error)})."
        status, message = error.response.status_code, error_message(error.response)
        return f"Girder at {self.url} answered {status} to {method} {path}: {message}"

    def _connect(self) -> requests.Session:
        if self._session is None:
            session = GirderSession(self.url)
            for name, value in self._attributes.items():
                setattr(session, name, value)
            self._session = session
        return self._session

    def _probe(self) -> int:
        """Make a request that needs only Girder's database, and return the status."""
        headers = {} if self._token is None else {TOKEN_HEADER: self._token}
        url = f"{self.url}/user/me"
        return self._connect().get(url, headers=headers, timeout=TIMEOUT_S).status_code


def encode_json(body: Mapping[str, Any]) -> bytes:
    """Return a mapping as JSON in UTF-8.

    ``requests`` itself would report a value that JSON cannot hold as a failure of the connection.

    Raises
    ------
    TypeError, ValueError, RecursionError
        If a value cannot be written as JSON.
    """
    text = json.dumps(body, allow_nan=False, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace")


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return encode_json(body)
    except (TypeError, ValueError, RecursionError) as e:
        raise SubmissionError(
            f"The request cannot be written as JSON: {e}. Nothing was sent."
        ) from e


def json_object_or_none(response: requests.Response) -> dict[str, Any] | None:
    """Return the JSON object of an answer, or None if it is ``null``.

    Raises
    ------
    GirderError
        If the answer is neither.
    """
    with contextlib.suppress(ValueError):
        answer = response.json()
        if isinstance(answer, dict) or answer is None:
            return answer
    raise GirderError(
        f"The server at {response.url} is not a Girder with the dask plugin: it sent "
        f"{response.headers.get('Content-Type', 'something')}, which is not a JSON object."
    )


def json_object(response: requests.Response) -> dict[str, Any]:
    """Return the JSON object of an answer; raises what :func:`json_object_or_none` does."""
    answer = json_object_or_none(response)
    if answer is None:
        raise GirderError(f"{response.url} answered null, which Girder does not do here.")
    return answer
