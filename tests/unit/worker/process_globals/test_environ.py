"""The environment variables of jobs that run at once."""

from __future__ import annotations

import concurrent.futures
import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from girder_dask.worker.job_log.log import JobLog, capturing
from girder_dask.worker.process_globals import environ
from girder_dask.worker.process_globals.environ import job_environment
from girder_dask.worker.propagation import hooks, subprocess_propagation
from tests.support.deadline import SECONDS

NAME = "GIRDER_DASK_A_VARIABLE"

getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    environ.install()
    hooks.install()
    monkeypatch.delenv(NAME, raising=False)
    yield
    hooks.uninstall()
    time.tzset()  # a test has set the time zone for C code


def test_four_jobs_at_once_have_their_own() -> None:
    barrier = threading.Barrier(4)

    def job(n: int) -> list[str]:
        log = JobLog()
        subprocess_propagation.set_run_id(log, f"run-{n}")
        with capturing(log), job_environment():
            os.environ[NAME] = str(n)
            barrier.wait(SECONDS)
            seen = [os.environ[NAME], os.getenv(NAME, ""), os.environb[NAME.encode()].decode()]
            seen.append(subprocess.check_output(["sh", "-c", f"echo ${NAME}"], text=True).strip())
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                seen.append(pool.submit(lambda: os.environ[NAME]).result(SECONDS))
            barrier.wait(SECONDS)
            return seen

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(job, range(4))) == [[str(n)] * 5 for n in range(4)]
    assert NAME not in os.environ
    assert getenv(NAME.encode()) is None


def test_all_of_a_mapping_is_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "of the process")
    before = dict(os.environ)
    with job_environment():
        assert os.environ[NAME] == "of the process"
        del os.environ[NAME]
        assert NAME not in os.environ
        assert os.environ.get(NAME) is None
        assert len(os.environ) == len(before) - 1
        assert NAME not in repr(os.environ)
        with pytest.raises(KeyError, match=NAME):
            del os.environ[NAME]
        with pytest.raises(KeyError, match=NAME):
            os.environ[NAME]
        with pytest.raises(TypeError):
            os.environ[NAME] = 1  # type: ignore[assignment]
        with pytest.raises(ValueError, match="illegal"):
            os.environ["A=B"] = "c"
        os.environ.update({NAME: "own", "OTHER": "x"})
        assert os.environ.copy() == dict(os.environ) == before | {NAME: "own", "OTHER": "x"}
        assert os.environ.pop("OTHER") == "x"
        os.environ.clear()
        assert dict(os.environ) == {}
        assert getenv(b"PATH") is None
    assert dict(os.environ) == before
    assert getenv(b"PATH") == before["PATH"].encode()
    assert getenv(NAME.encode()) == b"of the process"


def test_c_code_sees_the_last_one_and_in_the_end_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(NAME, "process")
    with job_environment():
        os.environ[NAME] = "outer"
        with job_environment():
            os.environ[NAME] = "inner"
            assert getenv(NAME.encode()) == b"inner"
        assert getenv(NAME.encode()) == b"outer"
        time_zone(b"outer")
    assert getenv(NAME.encode()) == b"process"


def time_zone(expected: bytes) -> None:
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    assert time.tzname == ("JST", "JST")
    assert getenv(NAME.encode()) == expected


def test_what_an_import_sets_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "")  # pytest takes it away
    (tmp_path / "sets_a_variable.py").write_text(f"import os\nos.environ[{NAME!r}] = 'imported'\n")
    monkeypatch.syspath_prepend(tmp_path)
    with job_environment():
        import sets_a_variable  # type: ignore[import-not-found]  # noqa: F401

        assert os.environ[NAME] == "imported"
    assert os.environ[NAME] == "imported"


def test_a_thread_that_outlives_its_job_changes_nothing_for_others() -> None:
    over, done = threading.Event(), threading.Event()
    seen: list[str | None] = []

    def leftover() -> None:
        over.wait(SECONDS)
        os.environ[NAME] = "late"
        seen.append(os.environ[NAME])
        done.set()

    with capturing(JobLog()), job_environment():
        threading.Thread(target=leftover).start()
    over.set()
    assert done.wait(SECONDS)
    assert seen == ["late"]
    assert NAME not in os.environ
    assert getenv(NAME.encode()) is None


def test_a_fork_has_the_variables_of_its_job_for_good() -> None:
    read, write = os.pipe()
    with job_environment():
        os.environ[NAME] = "own"
        with job_environment():
            os.environ[NAME] = "of another job"
            os.environ["OTHER"] = "of another job"
            environ._current.set(None)
        own = environ.JobEnvironment()
        own.own = {NAME.encode(): b"own"}
        token = environ._current.set(own)
        pid = os.fork()
        if not pid:
            shown = subprocess.check_output([sys.executable, "-c", SHOW], close_fds=False)
            os.write(write, shown)
            os._exit(0)
        environ._current.reset(token)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read, "rb") as f:
        assert f.read().split() == [b"own", b"None"]


SHOW = f"import os; print(os.environ[{NAME!r}], os.environ.get('OTHER'))"
