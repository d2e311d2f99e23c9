"""Parts of ``girder-dask standalone`` that die while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import girder_client
import psutil
import pytest

from girder_dask import credential
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.standalone import checks, marked_processes
from tests.support.rest_site import call, submit

SECONDS = 90
WORKERS = 2


class Standalone:
    """A ``girder-dask standalone`` that has started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._output = directory.with_suffix(".out")
        command = [sys.executable, "-m", "girder_dask.cli", "standalone"]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--workers", str(WORKERS), "--threads", "1", "--dir", str(directory)],
                env={**os.environ, "DASK_GIRDER__SCHEDULER__PULL_INTERVAL": "1s"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.until(lambda: "Ctrl-C stops everything" in self.output)
        self.first = self.stack

    @property
    def output(self) -> str:
        return self._output.read_text()

    @property
    def stack(self) -> dict[str, Any]:
        """What stack.json holds now."""
        return dict(json.loads((self.directory / "stack.json").read_text()))

    @property
    def api(self) -> str:
        return str(self.first["api"])

    @property
    def dashboard(self) -> str:
        return str(self.first["dashboard"]).removesuffix("/status")

    @property
    def pids(self) -> dict[str, int]:
        return dict(self.stack["pids"])

    def client(self) -> girder_client.GirderClient:
        return credential.connect(self.stack["api"], api_key=self.stack["api_key"])

    def until(self, condition: Callable[[], Any], seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def kill(self, *names: str) -> None:
        """Kill the first processes of parts, and wait until all parts have started again."""
        before = self.pids
        for name in names:
            os.kill(before[name], signal.SIGKILL)
        self.until(lambda: all(self.pids.get(name, before[name]) != before[name] for name in names))
        self.until(self.is_whole)

    def is_whole(self) -> bool:
        """Return True if all parts are said to run, do run, and were said to be ready.

        Workers that have lost their scheduler are ready for a while, so it must have them too.
        """
        pids = self.pids
        return (
            pids.keys() == self.first["pids"].keys()
            and all(
                psutil.pid_exists(pid)
                and self.output.rfind(f"{name}: ready in") > self.end_of(name)
                for name, pid in pids.items()
            )
            and checks.registered_workers(self.dashboard) == WORKERS
        )

    def end_of(self, name: str) -> int:
        """Return where the output tells of the last end of a part, -1 for nowhere."""
        return self.output.rfind(f"\n{name} has ended")

    def run_job(self, number: int) -> dict[str, Any]:
        """Start a job, and return its document when it has ended."""
        client = self.client()
        answer = submit(self, call("my_worker_tasks:my_task", number), by=client)
        assert answer.status_code == 200, answer.text
        (job,) = answer.json()["jobs"]
        self.until(lambda: client.get(f"job/{job['_id']}")["status"] in FINAL)
        return dict(client.get(f"job/{job['_id']}"))

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(120)


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Standalone]]:
    """Keep the stack of all tests here, and those that a test has ended before."""
    sites: list[Standalone] = []
    try:
        yield sites
    finally:
        for site in sites:
            if site.process.poll() is None:
                site.end(signal.SIGTERM)
            assert marked_processes.marked(str(site.directory)) == []


@pytest.fixture
def site(sites: list[Standalone], tmp_path_factory: pytest.TempPathFactory) -> Standalone:
    if not sites or sites[-1].process.poll() is not None:
        sites.append(Standalone(tmp_path_factory.mktemp("supervised") / "stack"))
    return sites[-1]


@pytest.mark.parametrize("name", ["mongod", "redis", "girder", "scheduler", "worker-0"])
def test_part_that_dies_is_started_again(site: Standalone, name: str) -> None:
    before = site.stack
    site.kill(name)
    now = site.stack
    assert {**now, "pids": {}} == {**before, "pids": {}}, "addresses and secrets stay"
    assert list(now["pids"]) == list(before["pids"])
    assert f"\n{name} has ended (killed by SIGKILL).\nThe end of {site.directory}" in site.output
    assert f"\n{name} restarts in " in site.output
    job = site.run_job(1)
    assert job["status"] == JobStatus.SUCCESS
    # The job may be there before the workers have found the new scheduler.
    waiting = "Waiting: no worker is connected to the Dask scheduler.\n"
    assert "".join(job["log"]).removeprefix(waiting) == "arg1 is 1\n"


def test_a_nanny_starts_its_worker_itself(site: Standalone) -> None:
    # A nanny whose worker is killed while it starts ends.
    log = site.directory / "logs/worker-1.log"
    site.until(lambda: "Registered to:" in log.read_text().rpartition("Start Nanny at:")[2])
    before = site.pids
    nanny = psutil.Process(before["worker-1"])
    (worker,) = worker_processes(nanny)
    worker.kill()
    site.until(lambda: worker_processes(nanny) not in ([], [worker]))
    assert site.run_job(2)["status"] == JobStatus.SUCCESS
    assert site.pids == before
    assert "worker-1 has ended" not in site.output.rpartition("worker-1: ready in")[2]


def test_all_parts_die_at_once(site: Standalone) -> None:
    folders = site.client().get("folder", {"parentType": "user", "parentId": me(site)})
    site.kill(*site.pids)
    assert site.client().get("folder", {"parentType": "user", "parentId": me(site)}) == folders
    assert site.run_job(3)["status"] == JobStatus.SUCCESS


def test_ctrl_c_while_a_part_is_down(site: Standalone) -> None:
    site.kill("redis")  # so that the pause before its next start is longer
    os.kill(site.pids["redis"], signal.SIGKILL)
    site.until(lambda: "redis" not in site.pids)
    assert site.end() == 0
    assert site.pids == {}
    assert "redis: stopping" not in site.output
    assert site.output.endswith("stopped\n")


def worker_processes(nanny: psutil.Process) -> list[psutil.Process]:
    """Return the processes in which a nanny has jobs run: one, or none for a moment."""
    found = []
    for process in nanny.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if marked_processes.is_running(process) and "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
    return found


def me(site: Standalone) -> str:
    return str(site.client().get("user/me")["_id"])
