"""Publisher of notifications to Redis from a background thread.

Requests never block on Redis. Redis stores no message but passes it to subscribers, so the
publisher asks first which channels have any, and builds no message for the others: most jobs have
no browser open.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from girder.notification import _redis_client_sync

from girder_dask.utils.background import Guard
from girder_dask.utils.error_log import ErrorLog
from girder_dask.utils.forks import reset_after_fork

__all__ = ["LazyMessages", "RedisPublisher", "connection_error", "is_alone"]

logger = logging.getLogger(__name__)

#: Timeout of requests to Redis. Girder itself sets none.
_TIMEOUT_S = 5.0

#: Seconds between two requests. A single message is published at once.
_INTERVAL_S = 0.02

#: Seconds between two checks that no other Redis server can have subscribers.
_ALONE_CHECK_INTERVAL_S = 60.0

#: Approximate limit of the bytes that wait to be published.
_MAX_WAITING_BYTES = 16 * 1024**2


def _connected() -> redis.Redis:
    """Return a client of Girder's Redis with timeouts."""
    pool = _redis_client_sync().connection_pool
    timeouts = {"socket_timeout": _TIMEOUT_S, "socket_connect_timeout": _TIMEOUT_S}
    options = {**pool.connection_kwargs, **timeouts}
    return redis.Redis(
        connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **options)
    )


def connection_error() -> str | None:
    """Return why Girder's Redis does not answer, None if it does."""
    try:
        with _connected() as client:
            client.ping()
    except (redis.RedisError, OSError) as e:
        return str(e) or type(e).__name__
    return None


@dataclass(frozen=True, slots=True)
class LazyMessages:
    """Messages that are built only if their channels have subscribers.

    Attributes
    ----------
    channels
        The channels of the messages.
    size
        The approximate number of bytes that the object keeps in memory.
    make
        Called from the publisher's thread with the channels that have subscribers. Returns pairs
        of a channel and a message.
    """

    channels: frozenset[str]
    size: int
    make: Callable[[Collection[str]], Iterable[tuple[str, str]]]


class RedisPublisher:
    """The publisher that sends messages in order from a background thread. Thread-safe.

    Messages are for browsers that are open now, so messages that cannot be published soon are
    dropped and logged.

    Parameters
    ----------
    connect
        Returns a client of Redis. The default is a client of Girder's Redis.
    """

    def __init__(self, connect: Callable[[], redis.Redis] = _connected) -> None:
        self._connect = connect
        self._alone_until = 0.0
        self._errors = ErrorLog(logger, expected=(redis.RedisError,))
        self._guard = Guard(logger, "Publishing notifications about jobs", max_delay_s=_TIMEOUT_S)
        #: How many batches were dropped, and how many requests have failed.
        self.dropped = self.failures = 0
        self._reset()
        reset_after_fork(self, RedisPublisher._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[LazyMessages] = []
        self._size = 0
        self._dropped = 0
        self._thread: threading.Thread | None = None

    @property
    def waiting_bytes(self) -> int:
        """About how many bytes wait to be published."""
        return self._size

    def post(self, batch: LazyMessages) -> None:
        """Publish messages. Returns at once."""
        with self._changed:
            if self._waiting and self._size + batch.size > _MAX_WAITING_BYTES:
                self._dropped += 1
                self.dropped += 1
                return
            self._waiting.append(batch)
            self._size += batch.size
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="girder-dask-notifications", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        client: redis.Redis | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                batches, self._waiting, self._size = self._waiting, [], 0
            with self._guard:
                client = client or self._connect()
                self._publish(client, batches)
            del batches  # they can be large
            # Messages that are posted during the pause are published together.
            time.sleep(max(_INTERVAL_S, self._guard.delay_s))

    def _publish(self, client: redis.Redis, batches: Sequence[LazyMessages]) -> None:
        try:
            channels = {name for batch in batches for name in batch.channels}
            subscribed = self._find_subscribed(client, channels)
            messages = [
                message
                for batch in batches
                if not subscribed.isdisjoint(batch.channels)
                for message in _make(batch, subscribed)
            ]
            if messages:
                pipeline = client.pipeline(transaction=False)
                for channel, text in messages:
                    pipeline.publish(channel, text)
                pipeline.execute()
        except redis.RedisError as e:
            self.failures += 1
            self._errors.failed(e, "Notifications about jobs are not sent: %s")
            return
        self._errors.recovered("Notifications about jobs are sent again")
        with self._changed:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            logger.info("%d batches of notifications about jobs were dropped", dropped)

    def _find_subscribed(self, client: redis.Redis, channels: set[str]) -> set[str]:
        """Return the channels that have subscribers, or may have some."""
        names = sorted(channels)
        now = time.monotonic()
        try:
            if now >= self._alone_until:
                if not is_alone(client.info()):
                    return channels
                self._alone_until = now + _ALONE_CHECK_INTERVAL_S
            pipeline = client.pipeline(transaction=False)
            pipeline.pubsub_numpat()
            pipeline.pubsub_numsub(*names)
            patterns, counts = pipeline.execute()
        except redis.ResponseError:  # Girder's Redis user may not ask
            return channels
        if patterns:
            return channels
        return {name for name, (_, count) in zip(names, counts, strict=True) if count}


def is_alone(info: Mapping[str, Any]) -> bool:
    """Return True if only the Redis server of this ``INFO`` can have subscribers.

    >>> is_alone({'role': 'master', 'connected_slaves': 2})
    False
    """
    is_cluster = bool(info.get("cluster_enabled"))
    return not is_cluster and info.get("role") == "master" and not info.get("connected_slaves")


def _make(batch: LazyMessages, subscribed: Collection[str]) -> list[tuple[str, str]]:
    try:
        return list(batch.make(subscribed))
    except Exception:
        logger.exception("Notifications about jobs cannot be built")
        return []
