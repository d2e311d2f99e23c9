"""A real Prometheus that scrapes a stack with the files that ``girder-dask init`` writes."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import yaml

from girder_dask.cli.site.files import Site
from tests.support.girder_services import free_port

__all__ = ["Prometheus", "alert_queries", "dashboard_queries", "scraping", "write_files"]


@dataclass
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression, each with its ``metric`` and ``value``."""
        found = requests.get(
            f"{self.url}/api/v1/query", params={"query": expression}, timeout=30
        ).json()
        assert found["status"] == "success", found
        result = found["data"]["result"]
        return list(result)

    def value(self, expression: str) -> float:
        """Return the value of an expression with one series, 0 if it has none."""
        return sum(float(each["value"][1]) for each in self.query(expression))

    def until(self, expression: str, timeout_s: float = 120.0) -> None:
        """Wait until an expression has a series."""
        deadline = time.monotonic() + timeout_s
        while not self.query(expression):
            assert time.monotonic() < deadline, f"{expression} has no series"
            time.sleep(0.3)


def write_files(stack: Any, directory: Path, key: str) -> Path:
    """Write the files of ``monitoring`` for a stack; return their folder."""
    ports = {
        "girder_port": urlsplit(stack.api).port,
        "dashboard_port": urlsplit(stack.dashboard).port,
    }
    site = Site("127.0.0.1", "127.0.0.1", ("127.0.0.1",), tls=False, **ports)  # type: ignore[arg-type]
    folder = directory / "monitoring"
    folder.mkdir()
    for file in site.files():
        if file.path.parts[0] == "monitoring":
            (directory / file.path).write_text(file.text)
    (folder / "metrics.key").write_text(key + "\n")
    return folder


@contextlib.contextmanager
def scraping(folder: Path) -> Iterator[Prometheus]:
    """Run Prometheus with these files, and scrape every two seconds, which a scrape may take."""
    config = folder / "prometheus.yaml"
    config.write_text(config.read_text().replace("_interval: 15s", "_interval: 2s"))
    port = free_port()
    command = [
        *("prometheus", f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}"),
        *(f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"),
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{port}")
            _wait_until_ready(prometheus.url, process, folder / "log")
            yield prometheus
        finally:
            process.terminate()
            process.wait(30)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{url}/-/ready", timeout=5).ok:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def alert_queries(folder: Path) -> dict[str, str]:
    """Return the expressions of the alarms, with comparisons that keep series that are false."""
    (group,) = yaml.safe_load((folder / "alerts.yaml").read_text())["groups"]
    return {
        rule["alert"]: re.sub(r" (==|>|<) ", r" \1 bool ", rule["expr"]) for rule in group["rules"]
    }


def dashboard_queries(folder: Path) -> dict[str, str]:
    """Return the expressions of the dashboard, with values for its variables."""
    panels = json.loads((folder / "dashboard.json").read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$task", ".*")
        for panel in panels
        for target in panel["targets"]
    }
