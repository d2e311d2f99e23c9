"""Output of containers that docker-py attaches to before they start, with a Docker engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import APIError

from girder_dask.celery.docker_output import EarlyAttachment, keep_buffered_output
from tests.support.docker_engine import IMAGE, Engine

Create = Callable[[Sequence[str]], tuple[Any, str]]

_ALL = {"logs": True, "stream": True}


@pytest.fixture(autouse=True)
def _buffered_output_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have docker-py return what comes together with the head of an answer, as on a worker."""
    name = "_get_raw_response_socket"
    monkeypatch.setattr(docker.APIClient, name, getattr(docker.APIClient, name))
    keep_buffered_output()


@pytest.fixture
def create(docker_engine: Engine) -> Iterator[Create]:
    """A function that returns a new client of docker-py, and the id of a container it created."""
    with _creating(docker_engine) as make:
        yield make


@pytest.fixture(params=["docker", "podman"])
def create_in_each(request: pytest.FixtureRequest) -> Iterator[Create]:
    """The same in Docker and in Podman."""
    with _creating(request.getfixturevalue(f"{request.param}_engine")) as make:
        yield make


@contextlib.contextmanager
def _creating(engine: Engine) -> Iterator[Create]:
    created = []

    def make(command: Sequence[str]) -> tuple[Any, str]:
        client = docker.APIClient(base_url=engine.url, version="auto", timeout=60)
        config = client.create_host_config(network_mode="none")
        made = client.create_container(IMAGE, list(command), host_config=config)["Id"]
        created.append((client, made))
        return client, made

    yield make
    for client, container in created:
        client.remove_container(container, force=True, v=True)
        client.close()


def _content(stream: Any) -> bytes:
    """Return what the frames of a stream contain, and close it."""
    data = b"".join(iter(lambda: stream.read(65536), b""))
    stream.close()
    content = b""
    while data:
        length = int.from_bytes(data[4:8], "big")
        content, data = content + data[8 : 8 + length], data[8 + length :]
    return content


def _first_frame(stream: Any) -> bytes:
    """Return what the first frame of a stream contains, and close it.

    The engine does not end a stream that was attached after the end of its container.
    """
    data = b""
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[4:8], "big"):
        data += stream.read(65536)
    stream.close()
    return data[8:]


def test_early_attachment_has_all_that_a_container_wrote_that_has_ended(
    create_in_each: Create,
) -> None:
    client, container = create_in_each(["sh", "-c", r"printf 'a\377b\0'; printf '\200c' >&2"])
    attachment = EarlyAttachment(client, container)
    client.start(container)
    assert client.wait(container)["StatusCode"] == 0
    streams = {
        name: client.attach_socket(container, {name: True, **_ALL}) for name in ("stdout", "stderr")
    }
    found = {name: _content(stream) for name, stream in streams.items()}
    assert found == {"stdout": b"a\xffb\0", "stderr": b"\x80c"}
    attachment.close()


def test_early_attachment_is_handed_over_once(create: Create) -> None:
    client, container = create(["sh", "-c", "echo once"])
    attachment = EarlyAttachment(client, container)
    client.start(container=container)
    client.wait(container)
    assert _content(client.attach_socket(container, params={"stdout": True, **_ALL})) == b"once\n"
    # The engine answers the second request, from its log.
    again = client.attach_socket(container, params={"stdout": True, **_ALL})
    assert _first_frame(again) == b"once\n"
    attachment.close()


def test_early_attachment_leaves_other_containers_and_clients(create: Create) -> None:
    client, container = create(["true"])
    other, _ = create(["true"])
    start, attach_socket = client.start, client.attach_socket
    attachments = [EarlyAttachment(client, container), EarlyAttachment(client, "another")]
    assert client.start != start
    assert (other.start.__func__, other.attach_socket.__func__) == (
        docker.APIClient.start,
        docker.APIClient.attach_socket,
    )
    for attachment in attachments:
        attachment.close()
    assert (client.start, client.attach_socket) == (start, attach_socket)


def test_early_attachment_of_a_container_that_cannot_start_is_closed(create: Create) -> None:
    client, container = create(["/absent"])
    attachment = EarlyAttachment(client, container)
    before = _open_sockets()
    with pytest.raises(APIError, match="absent"):
        client.start(container)
    # docker-py keeps the connection of its last request. Those of both streams are closed.
    assert _open_sockets() <= before + 1
    attachment.close()


def test_early_attachment_that_is_refused_leaves_the_attachment_after_the_start(
    create: Create, caplog: pytest.LogCaptureFixture
) -> None:
    client, container = create(["sh", "-c", "echo late"])
    attach_socket = client.attach_socket
    refused: list[Any] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if refused:
            return attach_socket(*args, **kwargs)
        refused.append(args)
        raise APIError("no attachment yet")

    client.attach_socket = refuse
    attachment = EarlyAttachment(client, container)
    client.start(container)
    client.wait(container)
    assert _first_frame(client.attach_socket(container, {"stdout": True, **_ALL})) == b"late\n"
    assert "is attached to after its start" in caplog.text
    attachment.close()


def _open_sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for each in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += each.readlink().name.startswith("socket:")
    return count
