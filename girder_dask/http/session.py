"""Sessions for Girder's API: the credential goes to this API alone, also after redirects."""

from __future__ import annotations

import functools
import http.cookiejar
import time
from collections.abc import Callable, Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from girder_dask._version import __version__
from girder_dask.http.authorities import TrustingSession
from girder_dask.http.links import resolve_redirect
from girder_dask.http.redirects import StorageServerError, is_within_api
from girder_dask.http.request_errors import is_unsent
from girder_dask.http.retry import RetryBudget
from girder_dask.protocol.names import TOKEN_HEADER

__all__ = ["MAX_IDLE_S", "GirderSession", "make_retrying_session"]


#: Seconds after which an idle connection is not used again. The server may be closing it: uvicorn,
#: which runs Girder, does so after 5 s.
MAX_IDLE_S = 2.0

# For the connection and for Girder's answer, by default. Girder may work on a request for long.
_TIMEOUT_S = (10, 600)
_IDEMPOTENT_METHODS = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}


class GirderSession(TrustingSession):
    """A session for the API of one Girder.

    Redirects of the API are errors (:class:`girder_dask.http.redirects.UnexpectedRedirect`).
    Those of downloads are followed without the token, and links only to where
    ``girder.worker.link-hosts`` allows. The token is sent to the API only.

    Parameters
    ----------
    api
        The REST API, for example ``https://girder.example.org/api/v1``.
    """

    def __init__(self, api: str) -> None:
        super().__init__()
        self.api = api
        self.headers["User-Agent"] = f"girder_dask/{__version__}"
        for scheme in ("http://", "https://"):
            self.mount(scheme, _FreshAdapter())
        # Girder takes its cookie for a token, and the cookie would outlive the given token.
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return the target of a redirect that requests follows itself: none of the API."""
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
    """An adapter whose connections are closed after some idle time, before they are used again."""

    _max_idle_s = staticmethod(lambda: MAX_IDLE_S)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools of connections."""
        super().init_poolmanager(*args, **kwargs)
        pools = self.poolmanager.pool_classes_by_scheme
        self.poolmanager.pool_classes_by_scheme = {
            scheme: _fresh(pool, self._max_idle_s) for scheme, pool in pools.items()
        }


@functools.cache
def _fresh(pool: type, max_idle_s: Callable[[], float]) -> type:
    """Return a class of pools that close idle connections when they are taken."""

    class Fresh(pool):  # type: ignore[misc]
        def _put_conn(self, connection: Any) -> None:
            if connection is not None:
                connection.idle_since = time.monotonic()
            super()._put_conn(connection)

        def _get_conn(self, timeout: float | None = None) -> Any:
            connection = super()._get_conn(timeout)
            since = getattr(connection, "idle_since", None)
            if since is not None and time.monotonic() - since >= max_idle_s():
                connection.close()  # it reconnects
            return connection

    return Fresh


class _RetryingSession(GirderSession):
    """A session that retries downloads whose storage server does not answer."""

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send a request, and repeat it while the storage server is unavailable."""
        if kwargs.get("timeout") is not None:
            return super().send(request, **kwargs)
        budget = None
        while True:
            try:
                return super().send(request, **kwargs)
            except StorageServerError as e:
                budget = budget or RetryBudget()
                budget.wait(e)


class _RetryingAdapter(_FreshAdapter):
    """An adapter that retries requests that are idempotent, or that Girder did not see.

    Each request has a connection of its own. A request with a timeout of its own is made once: its
    caller handles the failure.
    """

    _max_idle_s = staticmethod(lambda: 0.0)

    def __init__(self, api: str) -> None:
        self._api = api
        super().__init__()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("timeout") is not None:
            return super().send(request, *args, **kwargs)
        kwargs["timeout"] = _TIMEOUT_S
        budget = RetryBudget(probe=self._probe(request, *args, **kwargs))
        may_repeat = request.method in _IDEMPOTENT_METHODS
        while True:
            response: requests.Response | None = None
            error: requests.RequestException
            try:
                response = super().send(request, *args, **kwargs)
                if response.status_code < requests.codes.bad_request:
                    return response
                error = requests.HTTPError(request=request, response=response)
            except requests.RequestException as e:
                error = e
            try:
                if not (may_repeat or is_unsent(error)) or not _is_rewound(request):
                    raise error
                budget.wait(error)
            except requests.RequestException:
                if response is None:
                    raise
                return response

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


def _is_rewound(request: requests.PreparedRequest) -> bool:
    """Return True if the whole body of a request can be sent again."""
    return request.body is None or isinstance(request.body, (bytes, str))


def make_retrying_session(
    api: str, attributes: Mapping[str, Any] | None = None
) -> requests.Session:
    """Return a session that retries requests for ``girder.worker.retry-time``.

    GET, PUT and DELETE are repeated; others only if Girder did not see them.

    Parameters
    ----------
    api
        The REST API of the Girder.
    attributes
        Attributes of the session, such as ``verify``.
    """
    session = _RetryingSession(api)
    # A request on a connection that Girder is closing would be lost.
    session.headers["Connection"] = "close"
    for scheme in ("http://", "https://"):
        session.mount(scheme, _RetryingAdapter(api))
    for name, value in (attributes or {}).items():
        setattr(session, name, value)
    return session
