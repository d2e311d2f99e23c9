"""What brings notices to Redis. Nobody waits for a Redis that is away or slow.

Redis keeps no message, it hands it to those who listen. So it is asked who listens, and a notice
for nobody is not made at all: most jobs have no browser open.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from girder.notification import _redis_client_sync

from girder_dask.utils.background import Guard

__all__ = ["LazyMessages", "RedisPublisher", "is_alone"]

logger = logging.getLogger(__name__)

#: Seconds that Redis may take. Girder itself would wait for ever.
_TIMEOUT_S = 5.0

#: Seconds between two requests. What comes alone is published at once.
_INTERVAL_S = 0.02

#: Seconds for which a Redis is taken for the only one, as it says.
_ALONE_CHECK_INTERVAL_S = 60.0

#: Most bytes of notices that wait, about.
_MAX_WAITING_BYTES = 16 * 1024**2


def _connected() -> redis.Redis:
    """Return a client of Girder's Redis that gives up on one that is silent."""
    pool = _redis_client_sync().connection_pool
    patience = {"socket_timeout": _TIMEOUT_S, "socket_connect_timeout": _TIMEOUT_S}
    options = {**pool.connection_kwargs, **patience}
    return redis.Redis(
        connection_pool=redis.ConnectionPool(connection_class=pool.connection_class, **options)
    )


@dataclass(frozen=True, slots=True)
class LazyMessages:
    """Messages that are made when somebody listens.

    ``make`` is called in another thread with those of the channels that are listened to, and
    returns messages, each with its channel. ``size`` says about how many bytes it holds on to.
    """

    channels: frozenset[str]
    size: int
    make: Callable[[Collection[str]], Iterable[tuple[str, str]]]


class RedisPublisher:
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
        self._waiting: list[LazyMessages] = []
        self._size = 0
        self._dropped = 0
        self._alone_until = 0.0
        self._pid: int | None = None
        self._complaint: str | None = None
        self._guard = Guard(logger, "Publishing notices about jobs", max_delay_s=_TIMEOUT_S)

    def post(self, batch: LazyMessages) -> None:
        """Publish messages. Returns at once."""
        with self._news:
            if self._waiting and self._size + batch.size > _MAX_WAITING_BYTES:
                self._dropped += 1
                return
            self._waiting.append(batch)
            self._size += batch.size
            # A thread does not survive a fork; the child starts its own.
            if self._pid != os.getpid():
                self._pid = os.getpid()
                threading.Thread(target=self._run, name="girder-dask-notices", daemon=True).start()
            self._news.notify()

    def _run(self) -> None:
        client: redis.Redis | None = None
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting)
                batches, self._waiting, self._size = self._waiting, [], 0
            with self._guard:
                client = client or self._connect()
                self._publish(client, batches)
            del batches  # what they hold on to can be large
            # What comes meanwhile goes together.
            time.sleep(max(_INTERVAL_S, self._guard.delay_s))

    def _publish(self, client: redis.Redis, batches: Sequence[LazyMessages]) -> None:
        try:
            heard = self._listened_to(
                client, {name for batch in batches for name in batch.channels}
            )
            messages = [
                message
                for batch in batches
                if not heard.isdisjoint(batch.channels)
                for message in _made(batch, heard)
            ]
            if messages:
                pipeline = client.pipeline(transaction=False)
                for channel, text in messages:
                    pipeline.publish(channel, text)
                pipeline.execute()
        except redis.RedisError as e:
            if str(e) != self._complaint:
                logger.warning("Notices about jobs are not sent: %r", e)
            self._complaint = str(e)
            return
        with self._news:
            dropped, self._dropped = self._dropped, 0
        if self._complaint is not None or dropped:
            logger.info(
                "Notices about jobs are sent again; %d batches of them were too many", dropped
            )
        self._complaint = None

    def _listened_to(self, client: redis.Redis, channels: set[str]) -> set[str]:
        """Return those of some channels that somebody listens to, as far as Redis tells."""
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
        except redis.ResponseError:  # a user of Redis who may not ask
            return channels
        if patterns:
            return channels
        return {name for name, (_, count) in zip(names, counts, strict=True) if count}


def is_alone(info: Mapping[str, Any]) -> bool:
    """Say whether nobody can listen at another server to what is published at the one of this info.

    >>> is_alone({'role': 'master', 'connected_slaves': 2})
    False
    """
    is_cluster = bool(info.get("cluster_enabled"))
    return not is_cluster and info.get("role") == "master" and not info.get("connected_slaves")


def _made(batch: LazyMessages, heard: Collection[str]) -> list[tuple[str, str]]:
    try:
        return list(batch.make(heard))
    except Exception:
        logger.exception("Notices about jobs cannot be made")
        return []
