"""The autoscaler of workers, with a real scheduler and a stand-in for Kubernetes."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import sys
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dask.config
import prometheus_client
import pytest
from distributed import Client, Scheduler
from distributed.utils_test import async_poll_for

from girder_dask.scheduler.adaptive import AdaptiveTarget
from girder_dask.scheduler.metrics.of_workers import WorkerMetrics
from girder_dask.scheduler.window import Window
from tests.support.deploy_files import DEPLOY

TOKEN = "of-the-account"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = DEPLOY / "kubernetes" / "base" / "autoscale.py"
    spec = importlib.util.spec_from_file_location("autoscale", path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


class Kubernetes:
    """The resource ``scale`` of one Deployment."""

    def __init__(self) -> None:
        self.replicas = 0
        self.patches = 0

        kubernetes = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kubernetes.answer(self)

            def do_PATCH(self) -> None:
                assert self.headers["Content-Type"] == "application/merge-patch+json"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                kubernetes.replicas = json.loads(body)["spec"]["replicas"]
                kubernetes.patches += 1
                kubernetes.answer(self)

            def log_message(self, *_: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/scale"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        accepted = handler.headers["Authorization"] == f"Bearer {TOKEN}"
        is_there = handler.path == "/scale"
        handler.send_response(401 if not accepted else 200 if is_there else 404)
        handler.end_headers()
        # Kubernetes leaves out what is zero.
        spec = {"replicas": self.replicas} if self.replicas else {}
        handler.wfile.write(json.dumps({"spec": spec}).encode())


@pytest.fixture
def kubernetes() -> Iterator[Kubernetes]:
    found = Kubernetes()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text(TOKEN)
    return tmp_path


@contextlib.contextmanager
def served_metrics(scheduler: Scheduler) -> Iterator[None]:
    """Have a scheduler serve how many workers it wants."""
    metrics = WorkerMetrics(scheduler, AdaptiveTarget(scheduler, Window()))

    class Collector(prometheus_client.registry.Collector):
        def collect(self) -> Iterator[Any]:
            return metrics.families()

    collector = Collector()
    prometheus_client.REGISTRY.register(collector)
    try:
        yield
    finally:
        prometheus_client.REGISTRY.unregister(collector)


async def test_autoscaler_follows_the_scheduler(
    module: Any, kubernetes: Kubernetes, account: Path
) -> None:
    routes = ["distributed.http.scheduler.prometheus"]
    with dask.config.set({"distributed.scheduler.http.routes": routes}):
        async with (
            Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler,
            Client(scheduler.address, asynchronous=True) as client,
        ):
            url = f"http://127.0.0.1:{scheduler.http_server.port}"
            autoscaler = module.Autoscaler(kubernetes.url, 0, 5, account)

            async def wanted() -> dict[bool, int]:
                found: dict[bool, int] = await asyncio.to_thread(module.wanted_workers, url)
                return found

            async def step(now: float) -> int:
                return await asyncio.to_thread(autoscaler.step, (await wanted())[False], now)

            with served_metrics(scheduler):
                assert await step(0.0) == 0
                assert kubernetes.patches == 0
                future = client.submit(sum, [1, 2])
                await async_poll_for(lambda: scheduler.tasks, timeout=60)
                assert await wanted() == {False: 1, True: 0}
                assert await step(1.0) == 1
                assert kubernetes.replicas == 1
                del future
                await async_poll_for(lambda: not scheduler.tasks, timeout=60)
                assert await step(10.0) == 1, "it may ask for more soon"
                assert await step(10.0 + module.PATIENCE_S) == 0
                assert kubernetes.patches == 2
                waiting = client.submit(sum, [1, 2], resources={"GPU": 1})
                await async_poll_for(lambda: scheduler.tasks, timeout=60)
                assert await wanted() == {False: 0, True: 1}
                assert await step(11.0 + module.PATIENCE_S) == 0
                del waiting


def test_autoscaler_keeps_to_its_bounds(module: Any, kubernetes: Kubernetes, account: Path) -> None:
    autoscaler = module.Autoscaler(kubernetes.url, 2, 9, account)
    assert autoscaler.step(100, 0.0) == 9
    assert autoscaler.step(0, 1.0) == 9
    assert autoscaler.step(7, 2.0) == 9
    # The most that was asked for while it waited.
    assert autoscaler.step(3, 2.0 + module.PATIENCE_S) == 7
    assert autoscaler.step(0, 3.0 + module.PATIENCE_S) == 7


def test_step_sets_the_workers_with_a_gpu_if_there_are_any(
    module: Any, kubernetes: Kubernetes, account: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "wanted_workers", lambda _: {False: 3, True: 1})
    scalers = {
        False: module.Autoscaler(kubernetes.url, 1, 9, account),
        True: module.Autoscaler(f"{kubernetes.url}/missing", 0, 3, account),
    }
    module.step(scalers, "http://scheduler")
    assert kubernetes.replicas == 3
    scalers[True] = module.Autoscaler(kubernetes.url, 5, 9, account)
    module.step(scalers, "http://scheduler")
    assert kubernetes.replicas == 5
    scalers[False] = module.Autoscaler(f"{kubernetes.url}/missing", 0, 3, account)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        module.step(scalers, "http://scheduler")
