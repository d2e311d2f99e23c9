"""Processes that a task forks: they end where the code of the task ends."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask import current_job, task
from girder_dask.jobs import JobStatus
from tests.support.run_worker import Worker, captured

S = JobStatus


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    opened = Worker(tmp_path)
    yield opened
    opened.close()


def outcome(worker: Worker, *args: Any, **fields: Any) -> Any:
    with captured():  # no fixture: pytest sets the streams anew after those
        return worker.outcome(*args, **fields)


@task
def forks(how: str) -> dict[str, Any]:
    """Fork, let the child end in one way or another, and say how it ended and what is left."""
    directory = Path(str(current_job().work_dir))
    (directory / "kept.txt").write_text("by the parent")
    print("before")
    pid = os.fork()
    if not pid:
        print("in the child, without an end", end="")
        return CHILD[how]()  # type: ignore[no-any-return]
    _, status = os.waitpid(pid, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "left": (directory / "kept.txt").exists(),
    }


def _raise() -> None:
    raise ValueError("of the child")


def _thread() -> None:
    thread = threading.Thread(target=lambda: (time.sleep(0.1), print("\nfrom its thread")))
    thread.start()


CHILD: dict[str, Callable[[], Any]] = {
    "returns": lambda: "of the child",
    "raises": _raise,
    "exits": lambda: sys.exit(7),
    "exits with words": lambda: sys.exit("enough"),
    "leaves a thread": _thread,
}


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("returns", 0, ""),
        ("raises", 1, "ValueError: of the child\n"),
        ("exits", 7, ""),
        ("exits with words", 1, "enough\n"),
        ("leaves a thread", 0, "\nfrom its thread\n"),
    ],
)
def test_a_fork_ends_with_the_code_of_the_task(
    worker: Worker, how: str, code: int, said: str, isolation: str
) -> None:
    assert outcome(worker, None, how, task=forks.name, isolation=isolation) == {
        "code": code,
        "left": True,
    }
    assert worker.statuses() == [S.RUNNING, S.SUCCESS]
    log = worker.log()
    assert log.startswith("before\nin the child, without an end")
    assert log.endswith(said)
    assert "fork_exit.py" not in log.replace("test_fork_exit.py", ""), "frames of ours"
    assert list(worker.context.directory.glob("*")) == []


@task
def forks_in_a_pool() -> int:
    """Fork in a thread of a pool, in which a thread waits for more work afterwards."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pid = pool.submit(os.fork).result()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork_in_a_pool_does_not_wait_for_work(worker: Worker) -> None:
    assert outcome(worker, None, task=forks_in_a_pool.name) == 0


class Forking:
    """A transform that forks."""

    def transform(self) -> int:
        pid = os.fork()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else 1

    def cleanup(self) -> None:
        print("cleaned up")


class ForkingCleanup(Forking):
    """A transform that forks in its clean-up."""

    def transform(self) -> int:
        return 0

    def cleanup(self) -> None:
        super().cleanup()
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)


def test_a_fork_of_a_transform_ends_there(worker: Worker) -> None:
    assert outcome(worker, lambda code: code, Forking()) == 0
    assert worker.log() == "cleaned up\n"


@pytest.mark.parametrize("transform", [Forking, ForkingCleanup])
def test_a_fork_of_a_transform_does_not_go_on_with_the_run(
    worker: Worker, tmp_path: Path, transform: type[Forking]
) -> None:
    calls = tmp_path / "calls"

    def work(_: int) -> None:
        with calls.open("a") as file:
            file.write(f"{os.getpid()}\n")

    outcome(worker, work, transform())
    assert calls.read_text() == f"{os.getpid()}\n"
    assert worker.log() == "cleaned up\n"
    assert worker.statuses()[-1:] == [S.SUCCESS]


@task
def multiprocesses() -> list[int]:
    """Have processes of multiprocessing do something, and end one of them with SIGTERM."""
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        squares = pool.map(abs, [-1, -2])
    process = context.Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join()
    return [*squares, process.exitcode or 0]


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_processes_of_multiprocessing_end(worker: Worker, isolation: str) -> None:
    value = outcome(worker, None, task=multiprocesses.name, isolation=isolation)
    assert value == [1, 2, -signal.SIGTERM]
    assert worker.log() == ""


def test_a_signal_to_a_fork_is_none_to_the_worker(worker: Worker) -> None:
    """Event loops have signals written to a socket, which a fork shares."""
    heard: list[int] = []
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    os.set_blocking(ours, False)
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    wakeup = signal.set_wakeup_fd(theirs)
    try:
        assert outcome(worker, None, task=multiprocesses.name) == [1, 2, -signal.SIGTERM]
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, before)
        os.close(ours)
        os.close(theirs)
    assert heard == []
