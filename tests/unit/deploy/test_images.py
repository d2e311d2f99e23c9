"""The images' lock files and their Dockerfile."""

from __future__ import annotations

import configparser
import contextlib
import importlib.util
import os
import re
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import psutil
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.deploy_files import DEPLOY

IMAGES = DEPLOY / "images"
ROLES = ("dask", "girder", "dsa")


def locked(role: str) -> dict[str, str]:
    text = (IMAGES / "requirements" / f"{role}.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)", text, re.MULTILINE))


def required(*extras: str) -> list[Requirement]:
    """Return the requirements of girder_dask, and those of extras."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(DEPLOY.parent / "setup.cfg")
    texts = [config["options"]["install_requires"]]
    texts += [config["options.extras_require"][extra] for extra in extras]
    lines = "\n".join(texts).splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("role", "extras"), [("dask", ()), ("girder", ("girder",)), ("dsa", ("girder", "celery"))]
)
def test_lock_has_what_is_required(role: str, extras: tuple[str, ...]) -> None:
    versions = locked(role)
    text = (IMAGES / "requirements" / f"{role}.in").read_text()
    own = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    for requirement in [*required(*extras), *own]:
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement}: run make lock ARGS=--keep"
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_locks_agree_on_what_must_be_the_same_everywhere() -> None:
    for name in ("dask", "distributed", "cloudpickle", "tornado", "msgpack"):
        assert len({locked(role)[name] for role in ROLES}) == 1, name


@pytest.mark.parametrize("role", ROLES)
def test_lock_has_a_hash_for_each_version(role: str) -> None:
    text = (IMAGES / "requirements" / f"{role}.txt").read_text()
    blocks = re.split(r"^(?=[\w.-]+(?:\[[\w,]+\])?==)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(locked(role))
    assert all("--hash=sha256:" in block for block in blocks)


def test_dockerfile_has_stages_an_account_an_init_and_labels() -> None:
    text = (IMAGES / "Dockerfile").read_text()
    final = text.split("\nFROM ")[-1]
    assert text.count("\nFROM ${BASE}") == 2
    assert "USER 10001:10001" in final
    assert 'ENTRYPOINT ["tini", "--"]' in final
    assert "org.opencontainers.image.version" in final


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


class Nanny(Healthy):
    def do_GET(self) -> None:
        self.send_error(404)


class Broken(Healthy):
    def do_GET(self) -> None:
        self.send_error(500)


class NotHttp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"220 another protocol\r\n")


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> Any:
    loader = SourceFileLoader("healthy", str(IMAGES / "healthy"))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader("healthy", loader)  # type: ignore[arg-type]
    )
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    return module


@pytest.fixture
def serve() -> Iterator[Callable[[Any], str]]:
    """Serve a handler on loopback, and return its address."""
    with contextlib.ExitStack() as stack:

        def start(handler: Any) -> str:
            server = stack.enter_context(socketserver.TCPServer(("127.0.0.1", 0), handler))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_address[1]}/health"

        yield start


def test_healthy_asks_each_process_at_one_of_its_addresses(
    healthy: Any, serve: Callable[[Any], str]
) -> None:
    well, other = serve(Healthy), serve(NotHttp)
    assert {well, other} <= set(healthy.listening(os.getpid()))
    assert healthy.is_healthy([[well]])
    assert healthy.is_healthy([[other, well], [well]]), "a task listens, too"
    assert not healthy.is_healthy([[well], [other]]), "one of two processes hangs"
    assert healthy.is_healthy([[serve(Nanny)], [well]])
    assert not healthy.is_healthy([[serve(Broken)]])
    assert not healthy.is_healthy([])


def test_healthy_finds_the_processes_of_a_worker(healthy: Any, tmp_path: Path) -> None:
    child = "import sys; print('ready', flush=True); sys.stdin.read()"
    script = tmp_path / "dask"
    script.write_text(
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], stdin=sys.stdin)\n"
    )
    command = [sys.executable, str(script), "worker", "tls://scheduler:8786"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"ready\n"
        (below,) = psutil.Process(started.pid).children()
        assert {started.pid, below.pid} <= set(healthy.worker_processes())
        assert os.getpid() not in healthy.worker_processes()
        assert healthy.parent(below.pid) == started.pid
        assert healthy.listening(below.pid) == []


def test_healthy_refuses_a_role_that_does_not_exist() -> None:
    command = [sys.executable, str(IMAGES / "healthy"), "cook"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "usage" in done.stderr
