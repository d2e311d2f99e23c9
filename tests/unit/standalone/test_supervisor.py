"""Parts that end and are restarted. Here they are shells."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from girder_dask.standalone.report import Reporter
from girder_dask.standalone.stack_part import Part, tail
from girder_dask.standalone.supervisor import Supervisor


class Diary(Reporter):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, str]] = []
        self.texts: list[str] = []

    def starting(self, part: str) -> None:
        self.entries.append(("starting", part))

    def ready(self, part: str, seconds: float) -> None:  # noqa: ARG002
        self.entries.append(("ready", part))

    def failed(self, part: str, text: str) -> None:
        self.entries.append(("failed", part))
        self.texts.append(text)


class Site:
    """Shells under supervision."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.parts: list[Part] = []
        self.diary = Diary()

    def add(self, name: str, script: str, check: Callable[[], bool] = lambda: True) -> Part:
        """Start a shell, which runs when this returns."""
        part = Part(
            name,
            ["sh", "-c", script],
            env=dict(os.environ),
            directory=self.directory,
            log=self.directory / f"{name}.log",
            check=check,
            timeout=30,
        )
        part.start()
        self.parts.append(part)
        return part

    def supervise(
        self, quick: float = 30.0, pause: float = 0.05, most: int = 3, max_log_bytes: int = 10**6
    ) -> Supervisor:
        return Supervisor(
            self.parts,
            self.diary,
            start=lambda part: part.start(again=True),
            clear=Part.kill,
            pause_s=pause,
            early_s=quick,
            max_early_ends=most,
            max_log_bytes=max_log_bytes,
        )

    def heard(self, what: str) -> list[str]:
        return [part for event, part in self.diary.entries if event == what]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    for part in site.parts:
        part.kill()


def poll_until(supervisor: Supervisor, condition: Callable[[], object], seconds: float = 60) -> int:
    """Poll until a condition holds, and return how often a poll told of a change."""
    deadline = time.monotonic() + seconds
    changes = 0
    while not condition():
        assert time.monotonic() < deadline
        changes += supervisor.poll()
        time.sleep(0.01)
    return changes


def test_supervisor_restarts_a_part_that_ends(site: Site) -> None:
    part = site.add("girder", "echo begun; exec sleep 60")
    other = site.add("scheduler", "exec sleep 60")
    supervisor = site.supervise()
    assert not supervisor.poll()
    first, kept = part.pid, other.pid
    poll_until(supervisor, lambda: tail(part.log))
    psutil.Process(first).kill()
    assert poll_until(supervisor, lambda: site.heard("ready")) == 2, "its end and its start"
    assert part.running
    assert part.pid != first
    assert other.pid == kept
    assert site.diary.entries == [("failed", "girder"), ("starting", "girder"), ("ready", "girder")]
    assert site.diary.texts[0].startswith("girder has ended (killed by SIGKILL).")
    assert site.diary.texts[0].endswith("\ngirder restarts in 0.1 s.")
    poll_until(supervisor, lambda: len(tail(part.log)) == 3)
    assert tail(part.log) == ["begun", "--- girder restarts", "begun"]


def test_supervisor_rotates_the_log_of_a_part(site: Site) -> None:
    part = site.add("mongod", f"echo {'0123456789' * 30}; exec sleep 60")
    supervisor = site.supervise(max_log_bytes=200)
    rotated = part.log.with_name("mongod.log.1")
    poll_until(supervisor, rotated.exists)
    assert rotated.stat().st_size > 200
    assert part.log.stat().st_size == 0
    assert part.running
    assert site.diary.entries == []


def test_supervisor_clears_a_part_before_it_restarts_it(site: Site) -> None:
    part = site.add("worker-0", "sleep 60 & wait")
    supervisor = site.supervise()
    leader = psutil.Process(part.pid)
    poll_until(supervisor, leader.children)
    (child,) = leader.children()
    leader.kill()
    poll_until(supervisor, lambda: site.heard("failed"))
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    poll_until(supervisor, lambda: site.heard("ready"))


def test_supervisor_gives_up_a_part_that_keeps_ending_early(site: Site) -> None:
    part = site.add("girder", "echo no; exit 3")
    supervisor = site.supervise()
    poll_until(supervisor, lambda: len(site.heard("failed")) == 3)
    assert site.heard("starting") == ["girder"] * 2
    assert "restarts in 0.2 s." in site.diary.texts[1], "the pause doubles"
    last = site.diary.texts[2]
    assert "(exit code 3)" in last
    assert "girder has ended 3 times soon after its start and is not restarted." in last
    assert str(part.log) in last
    for _ in range(3):
        assert not supervisor.poll()
    assert not part.running


def test_supervisor_never_gives_up_a_part_that_worked_for_long(site: Site) -> None:
    site.add("girder", "sleep 0.5; exit 3")
    supervisor = site.supervise(quick=0)
    poll_until(supervisor, lambda: len(site.heard("failed")) == 5)
    assert all("restarts in 0.05 s." in text for text in site.diary.texts)


def test_supervisor_gives_up_a_part_that_never_works(site: Site) -> None:
    site.add("girder", "exit 3", check=lambda: False)
    supervisor = site.supervise(quick=0)
    poll_until(supervisor, lambda: len(site.heard("failed")) == 4)
    assert "girder ended while starting (exit code 3)." in site.diary.texts[1]
    assert "not restarted" in site.diary.texts[3]
    assert site.heard("ready") == []


def test_supervisor_restarts_a_part_after_those_before_it(site: Site, tmp_path: Path) -> None:
    up = tmp_path / "up"
    scheduler = site.add("scheduler", "exec sleep 60", check=up.exists)
    workers = [site.add(f"worker-{n}", "exec sleep 60") for n in range(2)]
    supervisor = site.supervise()
    for part in (scheduler, *workers):
        psutil.Process(part.pid).kill()
    poll_until(supervisor, lambda: site.heard("starting"))
    # The workers are due, but their scheduler is not ready.
    until = time.monotonic() + 0.5
    poll_until(supervisor, lambda: time.monotonic() > until)
    assert site.heard("starting") == ["scheduler"]
    up.touch()
    poll_until(supervisor, lambda: len(site.heard("ready")) == 3)
    assert site.heard("ready") == ["scheduler", "worker-0", "worker-1"]


def test_supervisor_does_not_let_a_worker_wait_for_another(site: Site) -> None:
    workers = [
        site.add("worker-0", "exec sleep 60", check=lambda: False),
        site.add("worker-1", "exec sleep 60"),
    ]
    supervisor = site.supervise()
    for part in workers:
        psutil.Process(part.pid).kill()
    poll_until(supervisor, lambda: site.heard("ready"))
    assert site.heard("ready") == ["worker-1"]


def test_supervisor_reports_a_program_that_is_gone(site: Site) -> None:
    part = site.add("redis", "exec sleep 60")
    supervisor = site.supervise(most=2)
    part.command[0] = str(site.directory / "none")
    psutil.Process(part.pid).kill()
    poll_until(supervisor, lambda: len(site.heard("failed")) == 2)
    assert "redis cannot be started" in site.diary.texts[1]
    assert "not restarted" in site.diary.texts[1]
