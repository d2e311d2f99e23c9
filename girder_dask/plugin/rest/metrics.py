"""The route of the metrics for Prometheus: ``dask/metrics``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import cherrypy
from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource, setResponseHeader
from girder.constants import TokenScope
from girder.exceptions import RestException
from girder.models.api_key import ApiKey
from girder.models.token import Token
from girder.models.user import User

from girder_dask.metrics import families
from girder_dask.plugin import scheduler_lease
from girder_dask.plugin.backend import GirderBackend
from girder_dask.plugin.metrics import exposition
from girder_dask.plugin.metrics.flusher import Flusher
from girder_dask.plugin.notify import notifications
from girder_dask.plugin.rest import routes
from girder_dask.plugin.store import models, quarantine
from girder_dask.protocol.names import METRICS_SCOPE, TOKEN_HEADER

__all__ = ["CACHE_TTL_S", "mount"]

#: Seconds for which an answer is given again, so that many scrapes cost no more than one.
CACHE_TTL_S = 5.0

_MAX_SECRET_CHARS = 200
_BEARER = "bearer "

TokenScope.describeScope(
    METRICS_SCOPE,
    "Read metrics of Dask jobs",
    "Allows Prometheus to read how many jobs there are and how long they take. It shows no single "
    "job, and allows nothing else.",
    admin=True,
)


def mount(resource: Resource, backend: GirderBackend) -> Flusher:
    """Add the route to the resource ``dask``; return what stores the counts of this process."""
    flusher = Flusher(lambda: _gauges(backend), lambda: _totals(backend), models.OPEN_INDEX)
    answer = _CachedAnswer(flusher)

    @access.public
    @autoDescribeRoute(
        Description("Return metrics in the text format of Prometheus.")
        .notes(
            "With an API key or a token of an administrator whose scope is `dask.metrics.read`, in "
            "the header `Authorization: Bearer …`, or `Girder-Token` for a token."
        )
        .errorResponse("There is no API key or token.", 401)
        .errorResponse("The key or token has not the scope.", 403)
        .errorResponse("prometheus_client is not installed.", 501)
    )
    def metrics() -> Callable[[], Iterator[bytes]]:
        """Return the metrics."""
        _authorize()
        if not families.is_available():
            raise RestException(
                f"Girder cannot write metrics without prometheus_client. {families.INSTALL_ADVICE}",
                code=501,
            )
        text = answer.text()
        setResponseHeader("Content-Type", families.CONTENT_TYPE)
        return lambda: iter([text])

    routes.add(resource, "GET", ("metrics",), metrics)
    return flusher


def _gauges(backend: GirderBackend) -> dict[str, float]:
    link, publisher = backend.link_facts(), notifications.publisher_facts()
    return {
        "link_unreachable": link.get("unreachable", 0),
        "link_waiting": link.get("waiting", 0),
        "notification_bytes": publisher["waiting_bytes"],
    }


def _totals(backend: GirderBackend) -> dict[str, int]:
    publisher = notifications.publisher_facts()
    return {
        "link_failures": backend.link_facts().get("failures", 0),
        "notification_failures": publisher["failures"],
        "dropped_notifications": publisher["dropped"],
    }


def _age_s(lease: scheduler_lease.Lease | None, now: datetime) -> float | None:
    if lease is None or lease.leader is None:
        return None
    return (now - lease.renewed).total_seconds()


class _CachedAnswer:
    """The text of the last scrape. Thread-safe."""

    def __init__(self, flusher: Flusher) -> None:
        self._flusher = flusher
        self._lock = threading.Lock()
        self._text = b""
        self._until = 0.0

    def text(self) -> bytes:
        with self._lock:
            if time.monotonic() >= self._until:
                now = datetime.now(timezone.utc)
                number = int(quarantine.summarize(now)["number"])
                age_s = _age_s(scheduler_lease.current(), now)
                readings = exposition.read(self._flusher, number, age_s, now)
                self._text = families.render(exposition.collect(readings))
                self._until = time.monotonic() + CACHE_TTL_S
            return self._text


def _authorize() -> None:
    """Raise RestException unless the request has a key or token with the scope.

    Prometheus sends its secret as a bearer. An API key is accepted there too, since tokens expire.
    """
    headers = cherrypy.request.headers
    given = str(headers.get("Authorization", ""))
    secret = given[len(_BEARER) :].strip() if given.lower().startswith(_BEARER) else ""
    secret = secret or str(headers.get(TOKEN_HEADER, ""))
    if not secret:
        raise RestException(
            "Give an API key with the scope dask.metrics.read in the header Authorization: Bearer "
            "KEY. An administrator creates one with 'girder-dask credential --metrics'.",
            code=401,
        )
    holder = _holder(secret) if len(secret) <= _MAX_SECRET_CHARS else None
    user = User().load(holder["userId"], force=True) if holder and holder.get("userId") else None
    if user is None or not user.get("admin"):
        raise RestException(
            "This is no API key or token of an administrator with the scope dask.metrics.read, or "
            "it has expired.",
            code=403,
        )


def _holder(secret: str) -> dict[str, Any] | None:
    """Return the API key or token document that has the scope, None if there is none."""
    key = ApiKey().findOne({"key": secret, "active": True, "scope": METRICS_SCOPE})
    if key is not None:
        return dict(key)
    token = Token().load(secret, force=True, objectId=False)
    if token is None or METRICS_SCOPE not in Token().getAllowedScopes(token):
        return None
    return dict(token) if token["expires"] > datetime.now(timezone.utc) else None
