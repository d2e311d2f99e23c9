"""Health checks of the parts. Each is one real request with a short timeout."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from girder_dask.errors import StackError

__all__ = ["get_json", "girder_answers", "mongo_answers", "redis_answers", "registered_workers"]

_TIMEOUT_S = 2.0
# Girder's statuses of a route that it does not have.
_NO_ROUTE_STATUSES = (400, 404)


def get_json(url: str, timeout: float = _TIMEOUT_S) -> Any:
    """Return the JSON document at ``url``, or None after an error or without an answer."""
    # The URL is an http address of this stack.
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310
            return json.load(answer)
    except (OSError, ValueError, urllib.error.URLError):
        return None


def mongo_answers(uri: str, timeout: float = 1.0) -> bool:
    """Return True if the database answers a ping within ``timeout`` seconds."""
    import pymongo
    import pymongo.errors

    try:
        client: pymongo.MongoClient[Any]
        with pymongo.MongoClient(uri, serverSelectionTimeoutMS=int(timeout * 1000)) as client:
            client.admin.command("ping")
    except pymongo.errors.PyMongoError:
        return False
    return True


def redis_answers(url: str) -> bool:
    """Return True if Redis answers a ping."""
    import redis

    try:
        with redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def girder_answers(api: str) -> bool:
    """Return True if Girder's REST API answers and has our plugin.

    Raises
    ------
    StackError
        If Girder answers but does not have the plugin.
    """
    if get_json(f"{api}/system/version") is None:
        return False
    if get_json(f"{api}/dask/ping") is not None:
        return True
    if _refuses(f"{api}/dask/ping"):
        raise StackError(
            "Girder has started without the dask plugin. Girder's log has the reason; if it has "
            "none, the plugin is not installed for this Python: "
            "pip install 'girder_dask[standalone]'."
        )
    return False  # it is slow


def _refuses(url: str) -> bool:
    """Return True if the server answers that there is no such route."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S):  # noqa: S310 - as above
            return False
    except urllib.error.HTTPError as e:
        return e.code in _NO_ROUTE_STATUSES
    except OSError:
        return False


def registered_workers(dashboard: str) -> int | None:
    """Return the number of workers of the scheduler, or None if it does not answer."""
    counts = get_json(f"{dashboard}/json/counts.json")
    return None if counts is None else int(counts["workers"])
