"""The images' lock files and their Dockerfile."""

from __future__ import annotations

import configparser
import importlib.util
import re
import socketserver
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler
from importlib.machinery import SourceFileLoader
from typing import Any

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


class NotHttp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"220 another protocol\r\n")


@pytest.mark.parametrize(("handler", "healthy"), [(Healthy, True), (NotHttp, False)])
def test_healthy_asks_what_listens_on_loopback(
    handler: Any, healthy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = SourceFileLoader("healthy", str(IMAGES / "healthy"))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_loader("healthy", loader)  # type: ignore[arg-type]
    )
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    with socketserver.TCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/health"
            assert url in module.urls("worker")
            assert module.answers(url) is healthy
        finally:
            server.shutdown()
            thread.join()
    assert module.answers(url) is False


def test_healthy_refuses_a_role_that_does_not_exist() -> None:
    command = [sys.executable, str(IMAGES / "healthy"), "cook"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "usage" in done.stderr
