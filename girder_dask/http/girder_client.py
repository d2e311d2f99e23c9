"""The ``girder_client.GirderClient`` of this package, which sends its token to one Girder only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import girder_client
import requests

from girder_dask.http.links import resolve_redirect
from girder_dask.http.session import GirderSession

__all__ = ["GirderClient"]


class GirderClient(girder_client.GirderClient):  # type: ignore[misc]
    """A client that follows only the redirects of downloads, and those without its token.

    This holds for sessions of the caller, too.

    Parameters
    ----------
    api_url
        The REST API.
    token
        A Girder token.
    make_session
        Returns a session for a REST API.
    """

    def __init__(
        self,
        api_url: str,
        token: str | None = None,
        make_session: Callable[[str], requests.Session] = GirderSession,
    ) -> None:
        super().__init__(apiUrl=api_url)
        if token is not None:
            self.token = token
        #: Attributes of its sessions, such as ``verify``.
        self.attributes: Mapping[str, Any] = {}
        self._make_session = make_session
        self._session: requests.Session | None = None
        self._own_session: requests.Session | None = None

    @contextlib.contextmanager
    def session(self, session: requests.Session | None = None) -> Iterator[requests.Session]:
        """Make all requests of a block with one session, by default a new one."""
        outer, inner = self._session, session or self._new_session()
        self._session = inner
        try:
            yield inner
        finally:
            inner.close()
            self._session = outer

    def close(self) -> None:
        """Close the connections."""
        if self._own_session is not None:
            self._own_session.close()

    def _new_session(self) -> requests.Session:
        session = self._make_session(self.urlBase)
        for name, value in self.attributes.items():
            setattr(session, name, value)
        return session

    def _requestFunc(self, method: str) -> Callable[..., requests.Response]:
        session = self._session
        if session is None:  # created on first use, as few tasks make requests
            self._own_session = self._own_session or self._new_session()
            session = self._session = self._own_session
        send: Callable[..., requests.Response] = getattr(session, method.lower())
        if isinstance(session, GirderSession):
            return send

        def send_within_api(*args: Any, **kwargs: Any) -> requests.Response:
            redirects = kwargs.pop("allow_redirects", True)
            response = send(*args, allow_redirects=False, **kwargs)
            more = {name: kwargs.get(name) for name in ("stream", "timeout")}
            return resolve_redirect(response, session, redirects=redirects, **more)

        return send_within_api
