"""The Girder client of a job, whose token goes to its own Girder alone."""

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
    """A ``GirderClient`` that follows no redirects but those of downloads, without its token.

    It holds whichever session it is given.

    Parameters
    ----------
    api_url
        The REST API.
    token
        A Girder token.
    make_session
        Makes the session of its requests.
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
        self._kept: requests.Session | None = None

    @contextlib.contextmanager
    def session(self, session: requests.Session | None = None) -> Iterator[requests.Session]:
        """Use a session for all requests within, by default a new one like its own."""
        before, within = self._session, session or self._made()
        self._session = within
        try:
            yield within
        finally:
            within.close()
            self._session = before

    def close(self) -> None:
        """Close its connections."""
        if self._kept is not None:
            self._kept.close()

    def _made(self) -> requests.Session:
        made = self._make_session(self.urlBase)
        for name, value in self.attributes.items():
            setattr(made, name, value)
        return made

    def _requestFunc(self, method: str) -> Callable[..., requests.Response]:
        session = self._session
        if session is None:  # few tasks ask Girder, so it is made when it is needed
            session = self._session = self._kept = self._kept or self._made()
        ask: Callable[..., requests.Response] = getattr(session, method.lower())
        if isinstance(session, GirderSession):
            return ask

        def asked(*args: Any, **kwargs: Any) -> requests.Response:
            redirects = kwargs.pop("allow_redirects", True)
            response = ask(*args, allow_redirects=False, **kwargs)
            more = {name: kwargs.get(name) for name in ("stream", "timeout")}
            return resolve_redirect(response, session, redirects=redirects, **more)

        return asked
