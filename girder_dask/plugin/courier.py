"""What brings notices to Redis. Nobody waits for a Redis that is away or slow."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

import redis
from girder.notification import _redis_client_sync

__all__ = ["Courier"]

logger = logging.getLogger(__name__)

#: Seconds that Redis may take. Girder itself would wait for ever.
_PATIENCE = 5.0

#: Seconds between two requests. What comes alone is published at once.
_SPACING = 0.02

#: Most characters of notices that wait.
_MOST_CHARACTERS = 16 * 1024**2


def _connected() -> redis.Redis:
    """Return a client of Girder's Redis that gives up on one that is silent."""
    pool = _redis_client_sync().connection_pool
    patience = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE}
    options = {**pool.connection_kwargs, **patience}
    return redis.Redis(
        connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **options)
    )


class Courier:
    """Publishes messages in their order, from a thread of its own. Any thread may use it.

    They are for those who look right now. So what cannot be published soon is dropped, with a
    word in the log.

    Parameters
    ----------
    connect
        Returns a client of Redis. By default that of Girder.
    """

    def __init__(self, connect: Callable[[], redis.Redis] = _connected) -> None:
        self._connect = connect
        self._news = threading.Condition()
        self._waiting: list[tuple[str, str]] = []
        self._size = 0
        self._dropped = 0
        self._pid: int | None = None
        self._complaint: str | None = None

    def post(self, messages: Sequence[tuple[str, str]]) -> None:
        """Publish messages, each given with its channel. Returns at once."""
        size = sum(len(text) for _, text in messages)
        with self._news:
            if self._waiting and self._size + size > _MOST_CHARACTERS:
                self._dropped += len(messages)
                return
            self._waiting.extend(messages)
            self._size += size
            # A thread does not survive a fork; the child starts its own.
            if self._pid != os.getpid():
                self._pid = os.getpid()
                threading.Thread(target=self._run, name="girder-dask-notices", daemon=True).start()
            self._news.notify()

    def _run(self) -> None:
        client = self._connect()
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting)
                messages, self._waiting, self._size = self._waiting, [], 0
            self._publish(client, messages)
            time.sleep(_SPACING)  # what comes meanwhile goes together

    def _publish(self, client: redis.Redis, messages: Sequence[tuple[str, str]]) -> None:
        try:
            pipeline = client.pipeline(transaction=False)
            for channel, text in messages:
                pipeline.publish(channel, text)
            pipeline.execute()
        except redis.RedisError as e:
            if str(e) != self._complaint:
                count = len(messages)
                logger.warning("%d notices about jobs, and more, are not sent: %s", count, e)
            self._complaint = str(e)
            return
        with self._news:
            dropped, self._dropped = self._dropped, 0
        if self._complaint is not None or dropped:
            logger.info("Notices about jobs are sent again; %d were too many meanwhile", dropped)
        self._complaint = None
