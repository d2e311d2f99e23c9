"""Listening to the notifications that browsers get from Girder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import redis

from tests.support.girder_services import Services, wait_until


@contextlib.contextmanager
def listening(
    services: Services, user: dict[str, Any] | None = None, pattern: str | None = None
) -> Iterator[Callable[[int, str], list[dict[str, Any]]]]:
    """Listen to what a browser of a user is told.

    Yields a function that waits for a number of notifications of a job.
    """
    client = redis.Redis.from_url(services.redis)
    subscription = client.pubsub()
    if pattern is None:
        subscription.subscribe(f"user_{user['_id']}")
    else:
        subscription.psubscribe(pattern)
    assert "subscribe" in subscription.get_message(timeout=60)["type"]
    found: list[dict[str, Any]] = []

    def received(count: int, job_id: str) -> list[dict[str, Any]]:
        def all_there() -> bool:
            if message := subscription.get_message(timeout=1):
                notice = json.loads(message["data"])
                if job_id in (notice["data"].get("_id"), notice.get("_id")):
                    found.append(notice)
            return len(found) == count

        wait_until(all_there, f"{count} notices")
        return found

    with contextlib.closing(client), contextlib.closing(subscription):
        yield received
