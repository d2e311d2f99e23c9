"""Connection to Girder for notebooks and scripts: ``connect()``."""

from __future__ import annotations

import contextlib
import warnings
from typing import TYPE_CHECKING, final
from urllib.parse import urlsplit, urlunsplit

from girder_dask._version import __version__
from girder_dask.client.backend import has_backend, in_run, set_backend, unset_backend
from girder_dask.errors import GirderError, NotConnectedError

if TYPE_CHECKING:
    from distributed import Client

    from girder_dask.client.rest_backend import RestBackend

__all__ = ["Connection", "connect"]

_API_PATH = "/api/v1"

_ANSWER_TIMEOUT_S = 10.0

_current: Connection | None = None


@final
class Connection:
    """The connection of this process to a Girder, opened by :func:`connect`.

    As a context manager, it is closed at the end of the block.

    Attributes
    ----------
    api_url
        Girder's REST API.
    user
        The login of the user whose jobs are started. None if the token may not read it.
    """

    def __init__(self, backend: RestBackend, user: str | None) -> None:
        self.api_url = backend.api_url
        self.user = user
        self._backend = backend

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self.is_open else " (closed)"
        return f"<Connection of {self.user or 'a token'} to {self.api_url}{state}>"

    @property
    def is_open(self) -> bool:
        """Whether ``delay()`` uses this connection."""
        return _current is self

    @property
    def dask_client(self) -> Client:
        """The client of the Dask scheduler. Raises SchedulerError if none is known."""
        return self._backend.dask_client()

    def close(self) -> None:
        """Close the connection. Jobs continue. ``delay()`` here raises NotConnectedError."""
        global _current
        unset_backend(self._backend)
        if _current is self:
            _current = None
        self._backend.close()


def connect(
    api_url: str,
    *,
    api_key: str | None = None,
    token: str | None = None,
    scheduler: str | Client | None = None,
) -> Connection:
    """Connect this process to a Girder, in which ``delay()`` then records jobs.

    There is one connection per process; connecting again replaces it.

    Parameters
    ----------
    api_url
        The address of Girder, for example ``https://girder.example.org``, or of its REST API.
    api_key
        Your API key, from your account page in Girder. Keep it out of the notebook: read it from
        the environment or with ``getpass``.
    token
        A Girder token, instead of an API key.
    scheduler
        Girder's Dask scheduler, as an address such as ``'tcp://dask.example.org:8786'`` or as a
        ``distributed.Client``. :attr:`JobResult.future`, values too large for Girder and
        ``girder_job_disable=True`` need it; everything else works without.

    Returns
    -------
    Connection

    Raises
    ------
    GirderError
        If there is no Girder with the plugin dask at the address, or it rejects the key.
    SchedulerError
        If the scheduler does not answer.
    NotConnectedError
        If the call is inside Girder, inside a running task, or without a key.
    """
    global _current
    _check_place()
    if (api_key is None) == (token is None):
        raise NotConnectedError(
            "girder_dask.connect() takes either an API key or a token: connect(api_url, "
            "api_key=…). Create an API key on your account page in Girder."
        )
    found, version = _find(_checked(api_url))
    from girder_dask.client.rest_backend import RestBackend

    backend = RestBackend(
        found,
        token=token,
        api_key=api_key,
        dask_address=scheduler if isinstance(scheduler, str) else None,
        dask_client=None if scheduler is None or isinstance(scheduler, str) else lambda: scheduler,
        unpickles="own",
        pins=scheduler is not None,
    )
    try:
        login = _signed_in(backend)
        if scheduler is not None:
            backend.dask_client()
    except BaseException:
        backend.close()
        raise
    _warn_of_version(version, found)
    if _current is not None:
        _current.close()
    set_backend(backend)
    _current = Connection(backend, login)
    return _current


def _check_place() -> None:
    if in_run():
        raise NotConnectedError(
            "girder_dask.connect() is for notebooks and scripts. In a task that runs as a job, "
            "delay() needs no connection: it creates child jobs of the running job."
        )
    if _current is None and has_backend():
        raise NotConnectedError(
            "girder_dask.connect() is for notebooks and scripts. This process is a Girder with "
            "the plugin dask, where delay() needs no connection."
        )


def _checked(api_url: str) -> str:
    """Return the address without query, fragment and trailing slash."""
    parts = urlsplit(str(api_url).strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise GirderError(
            f"{str(api_url).rpartition('@')[2]!r} is not the address of a Girder. Pass one such as "
            "'https://girder.example.org'."
        )
    if "@" in parts.netloc or parts.query:
        raise GirderError(
            f"The address of the Girder at {parts.hostname} contains a user, a password or a "
            "query. Addresses end up in logs: pass the API key as connect(api_url, api_key=…)."
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def _find(url: str) -> tuple[str, str]:
    """Return the address of the REST API, and the version of its plugin dask."""
    from girder_dask.http.probe import ApiProbe

    candidates = [url] if url.endswith(_API_PATH) else [url + _API_PATH, url]
    with contextlib.closing(ApiProbe(_ANSWER_TIMEOUT_S)) as probe:
        for candidate in candidates:
            answer = probe.get(candidate, "dask/ping")
            if answer is not None and "plugin" in answer.document:
                return answer.url, str(answer.document["plugin"])
        for candidate in candidates:
            answer = probe.get(candidate, "system/version")
            if answer is not None and "release" in answer.document:
                raise GirderError(
                    f"The Girder at {answer.url} does not have the plugin dask. Its administrator "
                    "installs it with: pip install girder_dask[girder]",
                    status=404,
                )
    raise GirderError(
        f"There is no Girder at {url}: the server there does not answer like Girder's REST API. "
        "Pass the address that a browser shows for Girder, or that of its REST API."
    )


def _signed_in(backend: RestBackend) -> str | None:
    """Return the login of the user. None if the token may not read it."""
    try:
        user = backend.user()
    except GirderError as e:
        if e.status not in (400, 401, 403):
            raise
        raise GirderError(
            f"Girder at {backend.api_url} rejects the API key or token ({e}). Create an API key on "
            "your account page in Girder.",
            status=e.status,
        ) from None
    if not user.get("_id"):
        raise GirderError(
            f"Girder at {backend.api_url} does not know the token; it may have expired. Connect "
            "with an API key, which is exchanged for new tokens: connect(api_url, api_key=…).",
            status=401,
        )
    login = user.get("login")
    return None if login is None else str(login)


def _warn_of_version(version: str, url: str) -> None:
    if version != __version__:
        warnings.warn(
            f"Girder at {url} has girder_dask {version}, but {__version__} is installed here. "
            f"Install the same version: pip install girder_dask=={version}",
            stacklevel=3,
        )
