"""Downloads from storage servers and links, without any credential."""

from __future__ import annotations

import http.cookiejar
import os
from collections.abc import Callable, Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, InvalidURL
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.poolmanager import PoolManager
from urllib3.util.connection import create_connection

from girder_dask import config
from girder_dask._version import __version__
from girder_dask.errors import GirderDaskError
from girder_dask.http.allowed_hosts import HostRefused, LinkHosts
from girder_dask.http.authorities import TrustingSession
from girder_dask.http.redirects import (
    ASSETSTORE,
    LINK,
    LinkRefused,
    StorageServerError,
    host_of,
    redirect_kind,
    redirect_target,
    refuse_redirect,
)
from girder_dask.http.retry import TIMEOUT_S

__all__ = ["follow_download", "is_too_large", "resolve_redirect", "storage_host"]

_MAX_REDIRECTS = 5
_FORWARDED_HEADERS = ("Range", "Accept-Encoding")
# Attributes of the client's session that also apply to the site's own storage servers.
_SITE_ATTRIBUTES = ("verify", "proxies", "trust_env")


def resolve_redirect(
    response: requests.Response,
    session: requests.Session | None,
    *,
    redirects: bool,
    **options: Any,
) -> requests.Response:
    """Return the answer to which a redirect of Girder's API leads, or the given answer.

    Parameters
    ----------
    response
        An answer of the API. Its redirect has not been followed.
    session
        The session of the request.
    redirects
        Whether the redirect of a download is followed. Otherwise it is returned as it is.
    options
        ``stream`` and ``timeout``, as for ``requests.get``.

    Raises
    ------
    UnexpectedRedirect
        If it is a redirect, and not one of a download.
    StorageServerError, LinkRefused
        If the redirect of a download cannot be followed.
    """
    kind = redirect_kind(response)
    if kind is None:
        refuse_redirect(response)
        return response
    return follow_download(response, session, **options) if redirects else response


def follow_download(
    response: requests.Response,
    session: requests.Session | None = None,
    *,
    stream: bool = False,
    timeout: Any = None,
) -> requests.Response:
    """Return the answer of the host to which Girder redirects a download.

    The request carries no credential: neither token nor cookies nor a client certificate.
    """
    url, kind = redirect_target(response), redirect_kind(response)
    asked = response.request.headers
    headers = {name: asked[name] for name in _FORWARDED_HEADERS if name in asked}
    response.close()
    options: dict[str, Any] = {
        "headers": headers,
        "stream": stream,
        "timeout": timeout or TIMEOUT_S,
    }
    if kind == LINK:
        return _open_link(url, options)
    with _AnonymousSession() as anonymous:
        for name in _SITE_ATTRIBUTES:
            if session is not None:
                setattr(anonymous, name, getattr(session, name))
        anonymous.max_redirects = _MAX_REDIRECTS
        return _answer(lambda: anonymous.get(url, **options), url, ASSETSTORE)


def storage_host(response: requests.Response) -> tuple[str, str]:
    """Return the host to which Girder redirects a download, and the kind of the redirect."""
    return host_of(redirect_target(response)), redirect_kind(response) or LINK


def is_too_large(size: int) -> bool:
    """Return True if a size in bytes is more than workers fetch from a link."""
    return size > config.nbytes("worker.link-size")


def _answer(get: Callable[[], requests.Response], url: str, kind: str) -> requests.Response:
    try:
        response = get()
    except requests.RequestException as e:
        if kind == LINK and isinstance(e, (InvalidURL, InvalidSchema)):
            raise
        raise StorageServerError(host_of(url), e, kind) from None  # which shows the address
    if response.status_code >= requests.codes.bad_request:
        response.close()
        raise StorageServerError(host_of(url), requests.HTTPError(response=response), kind)
    return response


class _AnonymousSession(TrustingSession):
    """A session without cookies and without passwords of a ``.netrc``."""

    def __init__(self) -> None:
        super().__init__()
        self.auth = _unchanged
        self.headers["User-Agent"] = f"girder_dask/{__version__}"
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """Add no credential to a redirect."""


class _OneHopSession(_AnonymousSession):
    """A session that follows no redirect."""

    def get_redirect_target(self, _resp: requests.Response) -> None:
        """Return None: no redirect is followed."""


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


# -- links ---------------------------------------------------------------------------------------


def _open_link(url: str, options: Mapping[str, Any]) -> requests.Response:
    """Follow a link. Each host is checked, and the connection goes to the checked address."""
    try:
        hosts, proxy = LinkHosts.configured(), config.get("worker.link-proxy")
    except GirderDaskError as e:
        raise LinkRefused(f"The file is a link, and no links are followed: {e}") from None
    with _OneHopSession() as session:
        session.trust_env = False  # proxies would resolve the host again
        session.verify = _authorities()
        session.proxies = {"http": str(proxy), "https": str(proxy)} if proxy else {}
        for scheme in ("http://", "https://"):
            session.mount(scheme, _CheckingAdapter(hosts))
        for _ in range(_MAX_REDIRECTS + 1):
            response = _one_hop(session, hosts, url, options)
            if not response.is_redirect:
                _check_size(response, url)
                return response
            response.close()
            url = redirect_target(response)
    raise StorageServerError(host_of(url), requests.TooManyRedirects(), LINK)


def _one_hop(
    session: requests.Session, hosts: LinkHosts, url: str, options: Mapping[str, Any]
) -> requests.Response:
    try:
        hosts.check(url)
        if session.proxies:
            hosts.check_name(url)
        return _answer(lambda: session.get(url, allow_redirects=False, **options), url, LINK)
    except (HostRefused, InvalidURL, InvalidSchema) as e:
        why = e if isinstance(e, HostRefused) else "which is not an address"
        raise LinkRefused(
            f"The file is a link to {host_of(url)}, {why}: links may lead to {hosts}. Upload the "
            "file to Girder, or ask the operator (girder.worker.link-hosts)."
        ) from None


def _authorities() -> str | bool:
    """Return the trusted certificates, as requests takes them from the environment."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def _check_size(response: requests.Response, url: str) -> None:
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and is_too_large(int(length)):
        response.close()
        raise LinkRefused(
            f"The file is a link to {host_of(url)}, where it has {int(length):,} bytes, more than "
            "workers fetch from a link. Upload it to Girder, or ask the operator "
            "(girder.worker.link-size)."
        )


class _CheckingAdapter(HTTPAdapter):
    """An adapter that connects only to addresses that are allowed for a host."""

    def __init__(self, hosts: LinkHosts) -> None:
        self._hosts = hosts
        super().__init__()

    def init_poolmanager(self, *_args: Any, **_kwargs: Any) -> None:
        """Make pools whose connections resolve and check their host themselves."""
        self.poolmanager = _pools(self._hosts)


def _pools(hosts: LinkHosts) -> PoolManager:
    class Plain(HTTPConnection):
        def _new_conn(self) -> Any:
            return _connected(self, hosts)

    class Secure(HTTPSConnection):
        def _new_conn(self) -> Any:
            return _connected(self, hosts)

    plain = type("PlainPool", (HTTPConnectionPool,), {"ConnectionCls": Plain})
    secure = type("SecurePool", (HTTPSConnectionPool,), {"ConnectionCls": Secure})
    manager = PoolManager(num_pools=1, maxsize=1)
    manager.pool_classes_by_scheme = {"http": plain, "https": secure}
    return manager


def _connected(connection: Any, hosts: LinkHosts) -> Any:
    """Return a socket to an allowed address of the host, which is resolved only here."""
    error: OSError | None = None
    try:
        for address in hosts.addresses(connection.host, connection.port):
            try:
                return create_connection(
                    (address, connection.port),
                    connection.timeout,
                    source_address=connection.source_address,
                    socket_options=connection.socket_options,
                )
            except OSError as e:
                error = e
    except OSError as e:
        error = e
    if isinstance(error, TimeoutError):
        raise ConnectTimeoutError(connection, "it did not answer in time") from error
    raise NewConnectionError(connection, str(error)) from error
