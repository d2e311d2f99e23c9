"""``connect()``: the way to Girder for notebooks and scripts."""

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

# Seconds for which Girder may be silent before it counts as not there.
_ANSWER_TIMEOUT_S = 10.0

_current: Connection | None = None


@final
class Connection:
    """The way from this process to a Girder, which :func:`connect` opened.

    It is a context manager, which closes it at its end.

    Attributes
    ----------
    api_url
        Girder's REST API.
    user
        The login of the user whose jobs are started, None if the API key does not tell.
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
        """Whether ``delay()`` goes through this connection."""
        return _current is self

    @property
    def dask_client(self) -> Client:
        """The client of the Dask scheduler. Raises SchedulerError if none is known."""
        return self._backend.dask_client()

    def close(self) -> None:
        """Close it. Jobs go on; ``delay()`` in this process raises NotConnectedError."""
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
    """Have ``delay()`` in this process record its jobs in a Girder.

    A process has one connection: a new one closes the one before.

    Parameters
    ----------
    api_url
        Girder, for example ``https://girder.example.org``, or its REST API.
    api_key
        An API key of yours, from the page of your account in Girder. Keep it out of the
        notebook: read it from the environment or with ``getpass``.
    token
        A Girder token, in place of an API key.
    scheduler
        The Dask scheduler that Girder uses, as an address such as
        ``'tcp://dask.example.org:8786'`` or as a ``distributed.Client``. It is needed for
        :attr:`JobResult.future`, for values too large to be kept in Girder and for
        ``girder_job_disable=True``; all else works without.

    Returns
    -------
    Connection

    Raises
    ------
    GirderError
        If what answers there is no Girder with the plugin dask, or does not accept the key.
    SchedulerError
        If the scheduler does not answer.
    NotConnectedError
        If it is called in a Girder, in a running task, or without a key.
    """
    global _current
    _check_place()
    if (api_key is None) == (token is None):
        raise NotConnectedError(
            "girder_dask.connect() takes an API key or a token, and one of them: "
            "connect(api_url, api_key=…). You make API keys in Girder, on the page of your account."
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
            "delay() needs no connection: it makes child jobs of the running one."
        )
    if _current is None and has_backend():
        raise NotConnectedError(
            "girder_dask.connect() is for notebooks and scripts. This process is a Girder with "
            "the plugin dask, where delay() needs no connection."
        )


def _checked(api_url: str) -> str:
    """Return the address without what does not belong to it."""
    parts = urlsplit(str(api_url).strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise GirderError(
            f"{str(api_url).rpartition('@')[2]!r} is no address of a Girder. Give one such as "
            "'https://girder.example.org'."
        )
    if "@" in parts.netloc or parts.query:
        raise GirderError(
            f"The address of the Girder at {parts.hostname} pins more than an address. Addresses "
            "end up in logs: give the API key as connect(api_url, api_key=…)."
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def _find(url: str) -> tuple[str, str]:
    """Return where the REST API is, and the version of its plugin dask."""
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
        f"There is no Girder at {url}: something answers there, but not as Girder's REST API "
        "does. Give the address that a browser shows for Girder, or that of its REST API."
    )


def _signed_in(backend: RestBackend) -> str | None:
    """Return the login of the user, None if the token does not tell."""
    try:
        user = backend.user()
    except GirderError as e:
        if e.status not in (400, 401, 403):
            raise
        raise GirderError(
            f"Girder at {backend.api_url} does not accept the API key or token ({e}). You make "
            "API keys in Girder, on the page of your account.",
            status=e.status,
        ) from None
    if not user.get("_id"):
        raise GirderError(
            f"Girder at {backend.api_url} does not know the token; it may have expired. Connect "
            "with an API key, which gives new tokens by itself: connect(api_url, api_key=…).",
            status=401,
        )
    login = user.get("login")
    return None if login is None else str(login)


def _warn_of_version(version: str, url: str) -> None:
    if version != __version__:
        warnings.warn(
            f"Girder at {url} has girder_dask {version}, and here is {__version__}. Install the "
            f"same here: pip install girder_dask=={version}",
            stacklevel=3,
        )
