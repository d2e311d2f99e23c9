"""Sessions of clients of Girder: a credential goes to its API alone, and redirects do not lead."""

from __future__ import annotations

import http.cookiejar
import time
from collections.abc import Callable, Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from girder_dask._version import __version__
from girder_dask.http.links import resolve_redirect
from girder_dask.http.redirects import StorageServerError, is_within_api
from girder_dask.http.request_errors import is_transient, is_unsent
from girder_dask.http.retry import RetryBudget
from girder_dask.protocol.names import TOKEN_HEADER

__all__ = ["MAX_IDLE_S", "GirderSession", "make_retrying_session"]


#: Seconds after which a connection that is kept open is not used again. A server may be closing
#: one that is idle; uvicorn, which runs Girder, does so after 5 s.
MAX_IDLE_S = 2.0

# Seconds that a connection may take, and that Girder may work at a request, if nobody says.
_TIMEOUT = (10, 600)
# What HTTP lets a client make again, since it does the same twice as once.
_IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}


class GirderSession(requests.Session):
    """A session for the API of one Girder.

    Redirects of the API are errors (:class:`girder_dask.http.redirects.UnexpectedRedirect`).
    Those of downloads are followed without the token, and links only to where
    ``girder.worker.link-hosts`` allows. A token goes nowhere but to the API.

    Parameters
    ----------
    api
        The REST API, for example ``https://girder.example.org/api/v1``.
    """

    def __init__(self, api: str) -> None:
        super().__init__()
        self.api = api
        self.headers["User-Agent"] = f"girder_dask/{__version__}"
        # Girder would take a cookie for a token, which would outlive the one that we give.
        for scheme in ("http://", "https://"):
            self.mount(scheme, _FreshAdapter())
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return where requests itself would follow an answer: not one of the API."""
        return None if is_within_api(resp.url, self.api) else super().get_redirect_target(resp)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a request, and follow the redirect of a download."""
        if not is_within_api(request.url, self.api):
            request.headers.pop(TOKEN_HEADER, None)
            return super().send(request, **kwargs)
        redirects = kwargs.pop("allow_redirects", True)
        response = super().send(request, allow_redirects=False, **kwargs)
        more = {name: kwargs.get(name) for name in ("stream", "timeout")}
        return resolve_redirect(response, self, redirects=redirects, **more)


class _FreshAdapter(HTTPAdapter):
    """Uses no connection again that Girder may be closing: a request on it would be lost."""

    def __init__(self) -> None:
        self._used = time.monotonic()
        super().__init__()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        if time.monotonic() - self._used > MAX_IDLE_S:
            self.poolmanager.clear()
        try:
            return super().send(request, *args, **kwargs)
        finally:
            self._used = time.monotonic()


class _RetryingSession(GirderSession):
    """One that waits for a store of files that is away, as for Girder."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a request; ask again for a file whose store does not answer."""
        if kwargs.get("timeout") is not None:
            return super().send(request, **kwargs)
        patience = None
        while True:
            try:
                return super().send(request, **kwargs)
            except StorageServerError as e:
                patience = patience or RetryBudget()
                patience.wait(e)


class _RetryingAdapter(HTTPAdapter):
    """Makes requests again that do the same twice as once, or have done nothing.

    One that has a timeout of its own is made once: whoever set that looks after what is then.
    """

    def __init__(self, api: str) -> None:
        self._api = api
        super().__init__()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("timeout") is not None:
            return super().send(request, *args, **kwargs)
        kwargs["timeout"] = _TIMEOUT
        patience = RetryBudget(probe=self._probe(request, *args, **kwargs))
        while True:
            error, response = self._failed(request, *args, **kwargs)
            if error is None:
                return response
            may_repeat = request.method in _IDEMPOTENT or is_unsent(error)
            if not may_repeat or not is_transient(error) or not _is_rewound(request):
                return _outcome(error, response)
            try:
                patience.wait(error)
            except requests.RequestException:
                return _outcome(error, response)

    def _failed(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> tuple[requests.RequestException | None, requests.Response | None]:
        """Send a request once. Return what came, and an error if that may pass."""
        try:
            response = super().send(request, *args, **kwargs)
        except requests.RequestException as e:
            return e, None
        if response.status_code < requests.codes.bad_request:
            return None, response
        return requests.HTTPError(request=request, response=response), response

    def _probe(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> Callable[[], int]:
        def probe() -> int:
            asking = request.copy()
            asking.prepare_method("GET")
            asking.prepare_url(f"{self._api.rstrip('/')}/user/me", None)
            asking.prepare_body(None, None)
            return int(super(_RetryingAdapter, self).send(asking, *args, **kwargs).status_code)

        return probe


def _outcome(error: Exception, response: requests.Response | None) -> requests.Response:
    if response is None:
        raise error
    return response


def _is_rewound(request: requests.PreparedRequest) -> bool:
    """Say whether a request has all of its body still."""
    return request.body is None or isinstance(request.body, (bytes, str))


def make_retrying_session(
    api: str, attributes: Mapping[str, Any] | None = None
) -> requests.Session:
    """Return a session whose requests wait for Girder, for ``girder.worker.retry-time``.

    Those that read, PUT and DELETE are made again, and others if Girder surely has not seen them.

    Parameters
    ----------
    api
        The REST API of the Girder.
    attributes
        Of the session, such as ``verify``.
    """
    session = _RetryingSession(api)
    # A kept connection may be closed by Girder just when it is used again.
    session.headers["Connection"] = "close"
    for scheme in ("http://", "https://"):
        session.mount(scheme, _RetryingAdapter(api))
    for name, value in (attributes or {}).items():
        setattr(session, name, value)
    return session
