"""The content of files that are elsewhere than in Girder, asked for without any credential."""

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
from girder_dask.http.addresses import HostRefused, LinkHosts
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

_MOST_REDIRECTS = 5
# What goes along of a request for a file.
_HEADERS = ("Range", "Accept-Encoding")
# What of the client's session counts for the site's own stores.
_OF_THE_SITE = ("verify", "proxies", "trust_env")


def resolve_redirect(
    response: requests.Response,
    session: requests.Session | None,
    *,
    redirects: bool,
    **options: Any,
) -> requests.Response:
    """Return what an answer of Girder's API leads to, or the answer itself.

    Parameters
    ----------
    response
        The answer, with no redirect followed.
    session
        The session that has made the request.
    redirects
        Whether one of a download is followed; otherwise it is returned as it is.
    options
        ``stream`` and ``timeout``, as for ``requests.get``.

    Raises
    ------
    UnexpectedRedirect
        If it is any other redirect.
    StorageServerError, LinkRefused
        If that of a download leads nowhere.
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

    Nothing that the client says of itself goes along: no token, no cookies, no key of its own.
    """
    url, kind = redirect_target(response), redirect_kind(response)
    asked = response.request.headers
    headers = {name: asked[name] for name in _HEADERS if name in asked}
    response.close()
    options: dict[str, Any] = {
        "headers": headers,
        "stream": stream,
        "timeout": timeout or TIMEOUT_S,
    }
    if kind == LINK:
        return _open_link(url, options)
    with _Anonymous() as elsewhere:
        for name in _OF_THE_SITE:
            if session is not None:
                setattr(elsewhere, name, getattr(session, name))
        elsewhere.max_redirects = _MOST_REDIRECTS
        return _answer(lambda: elsewhere.get(url, **options), url, ASSETSTORE)


def storage_host(response: requests.Response) -> tuple[str, str]:
    """Return the host to which Girder redirects a download, and of what kind that is."""
    return host_of(redirect_target(response)), redirect_kind(response) or LINK


def is_too_large(size: int) -> bool:
    """Say whether a link has more bytes than are fetched of one."""
    return size > config.nbytes("worker.link-size")


def _answer(get: Callable[[], requests.Response], url: str, kind: str) -> requests.Response:
    try:
        response = get()
    except requests.RequestException as e:
        if kind == LINK and isinstance(e, (InvalidURL, InvalidSchema)):
            raise
        raise StorageServerError(host_of(url), e, kind) from None  # it shows the address
    if response.status_code >= requests.codes.bad_request:
        response.close()
        raise StorageServerError(host_of(url), requests.HTTPError(response=response), kind)
    return response


class _Anonymous(requests.Session):
    """A session without cookies and without what a ``.netrc`` has for the host."""

    def __init__(self) -> None:
        super().__init__()
        self.auth = _unchanged
        self.headers["User-Agent"] = f"girder_dask/{__version__}"
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """Add nothing where a redirect leads."""


class _OneHop(_Anonymous):
    """A session that follows nothing by itself."""

    def get_redirect_target(self, _resp: requests.Response) -> None:
        """Return where requests itself would follow an answer."""


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


# -- links ---------------------------------------------------------------------------------------


def _open_link(url: str, options: Mapping[str, Any]) -> requests.Response:
    """Follow a link. Each host is checked, and asked at the address that was checked."""
    try:
        hosts, proxy = LinkHosts.configured(), config.get("worker.link-proxy")
    except GirderDaskError as e:
        raise LinkRefused(f"The file is a link, and links are followed nowhere: {e}") from None
    with _OneHop() as session:
        session.trust_env = False  # its proxies would look the host up again
        session.verify = _authorities()
        session.proxies = {"http": str(proxy), "https": str(proxy)} if proxy else {}
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Checked(hosts))
        for _ in range(_MOST_REDIRECTS + 1):
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
        why = e if isinstance(e, HostRefused) else "which is no address"
        raise LinkRefused(
            f"The file is a link to {host_of(url)}, {why}: links may lead to {hosts}. Upload the "
            "file to Girder, or ask the operator (girder.worker.link-hosts)."
        ) from None


def _authorities() -> str | bool:
    """Return the certificates that are trusted, as requests has them from the environment."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def _check_size(response: requests.Response, url: str) -> None:
    said = response.headers.get("Content-Length", "")
    if said.isdigit() and is_too_large(int(said)):
        response.close()
        raise LinkRefused(
            f"The file is a link to {host_of(url)}, where it has {int(said):,} bytes, more than "
            "are fetched of a link. Upload it to Girder, or ask the operator "
            "(girder.worker.link-size)."
        )


class _Checked(HTTPAdapter):
    """Connects to no address but those that were found allowed for a host."""

    def __init__(self, hosts: LinkHosts) -> None:
        self._hosts = hosts
        super().__init__()

    def init_poolmanager(self, *_args: Any, **_kwargs: Any) -> None:
        """Make the pools, with connections that look their host up themselves."""
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
    made = PoolManager(num_pools=1, maxsize=1)
    made.pool_classes_by_scheme = {"http": plain, "https": secure}
    return made


def _connected(connection: Any, hosts: LinkHosts) -> Any:
    """Return a socket to the host, whose name stands for what was looked up here and now."""
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
