"""The health checks of MongoDB in containers: the command ``ping``, in MongoDB's protocol."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator

import bson
import pytest
import yaml

from tests.support.deploy_files import DEPLOY

OP_MSG = 2013

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the images have bash")


def commands() -> dict[str, list[str]]:
    compose = yaml.safe_load((DEPLOY / "compose" / "docker-compose.yml").read_text())
    test = compose["services"]["mongo"]["healthcheck"]["test"]
    manifests = yaml.safe_load_all((DEPLOY / "kubernetes" / "base" / "storage.yaml").read_text())
    (mongo,) = [each for each in manifests if each["kind"] == "StatefulSet"]
    (container,) = mongo["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["exec"] == container["readinessProbe"]["exec"]
    return {
        # Compose takes $$ for $.
        "compose": [word.replace("$$", "$") for word in test[1:]],
        "kubernetes": container["livenessProbe"]["exec"]["command"],
    }


class Database:
    """A stand-in for MongoDB that answers one command."""

    def __init__(self, answer: dict[str, object]) -> None:
        self.commands: list[dict[str, object]] = []
        self.is_healthy = "ok" in answer
        self._answer = bson.encode(answer)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(30)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection, connection.makefile("rwb") as stream:
            length, _, _, opcode = struct.unpack("<iiii", stream.read(16))
            flags, kind = struct.unpack("<iB", stream.read(5))
            assert (opcode, flags, kind) == (OP_MSG, 0, 0)
            self.commands.append(bson.decode(stream.read(length - 21)))
            size = 21 + len(self._answer)
            stream.write(struct.pack("<iiiiiB", size, 0, 1, OP_MSG, 0, 0) + self._answer)

    def close(self) -> None:
        self._thread.join()
        self._socket.close()


@pytest.fixture(params=[{"ok": 1.0}, {"errmsg": "it stops"}], ids=["healthy", "broken"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    found = Database(request.param)
    yield found
    found.close()


@pytest.mark.parametrize("name", ["compose", "kubernetes"])
def test_mongodb_is_healthy_if_it_answers_ping(name: str, database: Database) -> None:
    command = [word.replace("27017", str(database.port)) for word in commands()[name]]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) is database.is_healthy, done.stderr
    assert database.commands == [{"ping": 1, "$db": "admin"}]
