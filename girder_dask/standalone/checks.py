"""Whether a service answers. Each check is one real request, and is quick to give up."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from girder_dask.errors import StackError

__all__ = ["get_json", "girder_answers", "mongo_answers", "redis_answers", "registered_workers"]

_TIMEOUT_S = 2.0


def get_json(url: str, timeout: float = _TIMEOUT_S) -> Any:
    """Return the JSON document at ``url``, or None if there is no answer or an error."""
    # Only http addresses of this stack are asked.
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:  # noqa: S310
            return json.load(answer)
    except (OSError, ValueError, urllib.error.URLError):
        return None


def mongo_answers(uri: str, timeout: float = 1.0) -> bool:
    """Say whether the database answers a ping within ``timeout`` seconds."""
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
    """Say whether Redis answers a ping."""
    import redis

    try:
        with redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def girder_answers(api: str) -> bool:
    """Say whether Girder's REST API answers, with our plugin.

    Raises
    ------
    StackError
        If Girder answers, but does not have the plugin.
    """
    if get_json(f"{api}/system/version") is None:
        return False
    if get_json(f"{api}/dask/ping") is None:
        raise StackError(
            "Girder has started without the dask plugin. Its own log says why; if it says "
            "nothing, the plugin is not installed for this Python: "
            "pip install 'girder_dask[standalone]'."
        )
    return True


def registered_workers(dashboard: str) -> int | None:
    """Return how many workers the scheduler has, None if it does not answer."""
    counts = get_json(f"{dashboard}/json/counts.json")
    return None if counts is None else int(counts["workers"])
