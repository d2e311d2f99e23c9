"""Requests to Girder's REST API.

What every client of Girder here has in common: signing in, errors that say what happened,
a connection that stays open, and what may be tried again.
"""

from __future__ import annotations

import contextlib
import http.cookiejar
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import requests

from girder_dask._version import __version__
from girder_dask.errors import GirderError, NotConnectedError, SubmissionError
from girder_dask.http.redirects import (
    ExplainedRequestError,
    host_of,
    redirect_target,
    refuse_redirect,
)
from girder_dask.http.retry import TIMEOUT_S, RetryBudget, is_transient
from girder_dask.http.session import MAX_IDLE_S, GirderSession
from girder_dask.protocol.names import TOKEN_HEADER

__all__ = ["ApiClient", "ApiProbe", "ProbeResult", "error_cause", "error_message", "json_document"]

# What a proxy answers while Girder restarts behind it.
_NOT_NOW = {502, 503, 504}

# What is waited out besides, within a job.
_PASSES = {408, 425, 429, 500}

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0
_NAP = 0.2  # an interruption comes through between two naps


class ApiClient:
    """Signed requests to one Girder. Any thread may use it.

    Parameters
    ----------
    url
        The REST API, for example ``https://girder.example.org/api/v1``.
    token
        A Girder token.
    api_key
        An API key, which gives a token when one is first needed and when it has expired.
    timeout
        Seconds that an answer may take.
    patience
        Seconds for which a request that may be repeated is, while Girder does not answer.
    endures
        Whether it also is while Girder has internal errors, as transfers of files are.
    session
        Attributes of the ``requests.Session``, such as ``verify``.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        patience: float = 30.0,
        endures: bool = False,
        session: Mapping[str, Any] | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._api_key = api_key
        self._token = token
        self._timeout = timeout
        self._patience = patience
        self._endures = endures
        self._lock = threading.Lock()
        self._used = 0.0
        self._is_closed = False
        self._attributes = dict(session or {})
        self._session = self._made()
        self._pid = os.getpid()

    def _made(self) -> requests.Session:
        made = GirderSession(self.url)
        for name, value in self._attributes.items():
            setattr(made, name, value)
        return made

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def close(self) -> None:
        """Close the connections, and forget the token and the API key."""
        self._is_closed = True
        self._token = self._api_key = None
        self._session.close()

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        repeat: bool = True,
        patience: float | None = None,
        read: Callable[[requests.Response], Any] | None = None,
    ) -> Any:
        """Return the document that Girder answers.

        Parameters
        ----------
        method, path
            Of the request; the path without ``/api/v1/``.
        body
            What to send as JSON.
        repeat
            Whether the request may reach Girder twice.
        patience
            In place of that of this object.
        read
            Returns what an answer holds, by default its JSON.

        Raises
        ------
        GirderError
            If Girder refuses or does not answer.
        NotConnectedError
            If this was closed.
        """
        if self._is_closed:
            raise NotConnectedError(f"The connection to Girder at {self.url} was closed.")
        data = None if body is None else _dumped(body)
        limit = self._patience if patience is None else patience
        waits = RetryBudget(limit, self._probe) if self._endures else _Deadline(limit)
        while True:
            try:
                return (read or json_document)(self._signed(method, path, data, repeat=repeat))
            except _Unanswered as e:
                unanswered = e
            try:
                if not (repeat or unanswered.unsent):
                    raise unanswered.error
                waits.wait(unanswered.error)
            except requests.RequestException as e:
                raise GirderError(str(unanswered), status=unanswered.status) from e

    def text(self, path: str) -> str:
        """Return the text that Girder has at a path; raises what :meth:`ask` does."""
        found: str = self.ask("GET", path, read=lambda answer: answer.content.decode())
        return found

    def _signed(
        self, method: str, path: str, data: bytes | None, *, repeat: bool
    ) -> requests.Response:
        token = self._token or self._sign_in(None)
        try:
            return self._send(method, path, data, token=token, repeat=repeat)
        except GirderError as e:
            if e.status != 401 or self._api_key is None:
                raise
        # Girder has not looked at a request whose token it does not know.
        return self._send(method, path, data, token=self._sign_in(token), repeat=repeat)

    def _probe(self) -> int:
        """Ask Girder's database alone, and return the status of the answer."""
        headers = {} if self._token is None else {TOKEN_HEADER: self._token}
        url = f"{self.url}/user/me"
        return self._opened(fresh=False).get(url, headers=headers, timeout=TIMEOUT_S).status_code

    def _sign_in(self, stale: str | None) -> str | None:
        """Return a new token, or that which another thread has got since."""
        with self._lock:
            if self._token != stale or self._api_key is None:
                return self._token
            answer = json_document(
                self._send("POST", "api_key/token", _dumped({}), key=self._api_key)
            )
            try:
                self._token = str(answer["authToken"]["token"])
            except (KeyError, TypeError) as e:
                raise GirderError(f"{self.url} gave no token for the API key; is it Girder?") from e
            return self._token

    def _send(
        self,
        method: str,
        path: str,
        data: bytes | None,
        *,
        token: str | None = None,
        key: str | None = None,
        repeat: bool = True,
    ) -> requests.Response:
        headers = {"Content-Type": "application/json"} if data is not None else {}
        if token is not None:
            headers[TOKEN_HEADER] = token
        form: Any = data
        if key is not None:
            form, headers = {"key": key}, {}
        try:
            response = self._opened(fresh=not repeat).request(
                method,
                f"{self.url}/{path}",
                data=form,
                headers=headers,
                timeout=self._timeout,
            )
        except ExplainedRequestError as e:
            status = None if e.response is None else int(e.response.status_code)
            raise GirderError(str(e), status=status) from e
        except requests.RequestException as e:
            text = f"Girder does not answer at {self.url} ({error_cause(e)})."
            if not is_transient(e):
                raise GirderError(text) from e
            raise _Unanswered(text, e, unsent=_is_unsent(e)) from e
        self._used = time.monotonic()
        return self._answer(method, path, response)

    def _opened(self, *, fresh: bool) -> requests.Session:
        """Return the session, with no connection that may be closing if it is to be fresh."""
        if self._pid != os.getpid():  # a fork: the connections are the parent's
            self._session, self._pid = self._made(), os.getpid()
        elif fresh and time.monotonic() - self._used > MAX_IDLE_S:
            self._session.close()  # it opens others
        return self._session

    def _answer(self, method: str, path: str, response: requests.Response) -> requests.Response:
        if response.ok:
            return response
        text = (
            f"Girder at {self.url} answered {response.status_code} to {method} {path}: "
            f"{error_message(response)}"
        )
        if response.status_code in (_NOT_NOW | _PASSES if self._endures else _NOT_NOW):
            raise _Unanswered(text, requests.HTTPError(text, response=response), unsent=False)
        raise GirderError(text, status=response.status_code)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """A JSON object that was found, and the REST API that sent it."""

    url: str
    document: dict[str, Any]


class ApiProbe:
    """Looks for Girder at addresses that may be wrong, without a token.

    It follows redirects within a host, as from http to https: a key that is sent to where it
    has led must not go to a host that nobody has named.

    Parameters
    ----------
    timeout
        Seconds that an answer may take.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._session = _WithinHost()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def get(self, url: str, path: str) -> ProbeResult | None:
        """Return the JSON object at ``url/path``, or None if something else is there.

        Raises
        ------
        GirderError
            If nothing answers, or the way leads to another host, or from https to http.
        """
        try:
            response = self._session.get(f"{url}/{path}", timeout=self._timeout)
            refuse_redirect(response)
        except ExplainedRequestError as e:
            raise GirderError(str(e)) from e
        except requests.RequestException as e:
            raise GirderError(f"Girder does not answer at {url} ({error_cause(e)}).") from e
        if response.status_code in _NOT_NOW:
            raise GirderError(
                f"Girder does not answer at {url} ({response.status_code} {response.reason}).",
                status=response.status_code,
            )
        if url.startswith("https:") and response.url.startswith("http:"):
            raise GirderError(
                f"{url} leads to {response.url}, where a key would travel unencrypted. Ask whoever "
                "runs this Girder, or give that address if it is meant."
            )
        with contextlib.suppress(ValueError):
            found = response.json()
            if response.ok and isinstance(found, dict):
                return ProbeResult(response.url.removesuffix(f"/{path}"), found)
        return None


class _WithinHost(requests.Session):
    def __init__(self) -> None:
        super().__init__()
        self.headers["User-Agent"] = f"girder_dask/{__version__}"
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where an answer leads if that is the same host."""
        if not resp.is_redirect or host_of(redirect_target(resp)) != host_of(resp.url):
            return None
        return super().get_redirect_target(resp)


class _Unanswered(Exception):
    """A request to which Girder gave no answer. ``unsent``: it cannot have seen it."""

    def __init__(self, text: str, error: requests.RequestException, *, unsent: bool) -> None:
        super().__init__(text)
        self.error = error
        self.unsent = unsent
        self.status = None if error.response is None else int(error.response.status_code)


class _Deadline:
    """The time until which a request is made again."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._pause = _FIRST_PAUSE

    def wait(self, error: Exception) -> None:
        """Wait before the next try, or raise the error if the time is over."""
        now = time.monotonic()
        if now >= self._end:
            raise error
        until = min(now + self._pause, self._end)
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _NAP))
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


def _is_unsent(error: BaseException | None) -> bool:
    """Say whether a request failed before a connection was made."""
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return True
    reason = getattr(error.args[0] if error and error.args else None, "reason", None)
    return type(reason).__name__ in {"NewConnectionError", "NameResolutionError"}


def _dumped(body: Mapping[str, Any]) -> bytes:
    # Not left to requests, which takes what is no JSON for a failure of the connection.
    try:
        text = json.dumps(body, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as e:
        raise SubmissionError(
            f"The request cannot be written as JSON: {e}. Nothing was sent."
        ) from e
    return text.encode("utf-8", "backslashreplace")


def json_document(response: requests.Response) -> Any:
    """Return the JSON of an answer.

    Raises
    ------
    GirderError
        If it is neither an object nor null.
    """
    with contextlib.suppress(ValueError):
        found = response.json()
        if isinstance(found, dict) or found is None:
            return found
    raise GirderError(
        f"What answers at {response.url} is no Girder with the dask plugin: it sent "
        f"{response.headers.get('Content-Type', 'something')} that is no JSON object."
    )


def error_cause(error: BaseException) -> str:
    """Return the innermost reason of an error of requests, without object addresses."""
    reason = error.args[0] if error.args else error
    reason = getattr(reason, "reason", reason)
    text = str(reason)
    if "object at 0x" in text or text.startswith("HTTP"):
        return text.rpartition(": ")[2]
    return text


def error_message(response: requests.Response) -> str:
    """Return what Girder says of an error."""
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return response.reason or "no reason given"
