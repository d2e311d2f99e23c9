"""A thread's own working directory and umask, with threads and pools that follow."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from girder_dask.utils import working_directory
from girder_dask.utils.working_directory import own_working_directory
from girder_dask.worker.interruption.job_threads import JobThreads
from girder_dask.worker.job_log.log import JobLog, capturing
from girder_dask.worker.propagation import hooks
from tests.support.deadline import SECONDS, until

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _inherited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    hooks.install()
    monkeypatch.setattr(os, "umask", working_directory.recording_umask(os.umask))
    yield
    hooks.uninstall()


def in_thread(work: Callable[[], T]) -> T:
    """Return what a job in a thread of its own returns."""

    def run() -> T:
        log = JobLog()
        threads = JobThreads(log)
        with capturing(log), own_working_directory() as is_own:
            assert is_own
            threads.enter()
            try:
                return work()
            finally:
                threads.release()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result(SECONDS)


def mask() -> int:
    now = os.umask(0o22)
    os.umask(now)
    return now


def test_own_working_directory_affects_one_thread_until_its_end(tmp_path: Path) -> None:
    before, umask = Path.cwd(), mask()

    def work() -> tuple[Path, int, Path]:
        os.chdir(tmp_path)
        os.umask(0o77)
        elsewhere = in_thread(lambda: (Path.cwd(), mask()))
        return Path.cwd(), *elsewhere  # type: ignore[return-value]

    def twice() -> tuple[Path, int]:
        with own_working_directory():
            work()
        return Path.cwd(), mask()

    assert in_thread(work) == (tmp_path, tmp_path, 0o77), "what a job starts has what it has"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(twice).result(SECONDS) == (before, umask)
    assert (Path.cwd(), mask()) == (before, umask)


def test_own_working_directory_holds_for_subprocesses_and_threads(tmp_path: Path) -> None:
    seen: list[Path] = []

    def work() -> str:
        os.chdir(tmp_path)
        thread = threading.Thread(target=lambda: seen.append(Path.cwd()))
        thread.start()
        thread.join()
        return subprocess.check_output(["pwd"], text=True).strip()

    assert in_thread(work) == str(tmp_path)
    assert seen == [tmp_path]


def test_own_working_directory_may_be_removed_meanwhile(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    before = Path.cwd()

    def run() -> Path:
        with own_working_directory():
            os.chdir(gone)
            gone.rmdir()
        return Path.cwd()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(run).result(SECONDS) == before


def test_own_working_directory_of_the_main_thread_is_restored(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "from girder_dask.utils.working_directory import own_working_directory\n"
        "before = os.getcwd()\n"
        f"with own_working_directory():\n    os.chdir({str(tmp_path)!r})\n"
        "print(os.getcwd() == before)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "True\n"


def test_in_this_directory_lets_a_pool_follow_each_submitter(tmp_path: Path) -> None:
    """The thread of the pool is started by the first job, whose directory is gone soon."""
    before, umask = Path.cwd(), mask()
    places = [tmp_path / name for name in "ab"]
    with concurrent.futures.ThreadPoolExecutor(1) as shared:

        def job(place: Path) -> tuple[Path, int]:
            place.mkdir()
            os.chdir(place)
            os.umask(0o27)
            found = shared.submit(lambda: (Path.cwd(), mask())).result(SECONDS)
            place.rmdir()
            return found

        for place in places:
            assert in_thread(lambda place=place: job(place)) == (place, 0o27)  # type: ignore[misc]
            assert shared.submit(lambda: (Path.cwd(), mask())).result(SECONDS) == (before, umask)


def test_in_this_directory_takes_one_descriptor_for_a_thousand_calls(tmp_path: Path) -> None:
    def work() -> tuple[int, set[Path]]:
        os.chdir(tmp_path)
        go = threading.Event()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            pool.submit(go.wait)
            before = len(list(Path("/proc/self/fd").iterdir()))
            found = [pool.submit(Path.cwd) for _ in range(3000)]
            more = len(list(Path("/proc/self/fd").iterdir())) - before
            go.set()
            return more, {future.result(SECONDS) for future in found}

    more, found = in_thread(work)
    assert found == {tmp_path}
    assert more < 10
    until(lambda: not working_directory._open_directories)  # and lets go of it


def test_in_this_directory_leaves_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(working_directory, "_unshare", refused)
    working_directory.unsupported_reason.cache_clear()
    try:
        assert working_directory.unsupported_reason() == "[Errno 1] Operation not permitted"
        with own_working_directory() as is_own:
            assert not is_own
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                assert pool.submit(Path.cwd).result(SECONDS) == Path.cwd()
    finally:
        working_directory.unsupported_reason.cache_clear()
