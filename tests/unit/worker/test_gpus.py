"""Which run has which GPU."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask import current_job, task
from girder_dask.worker import gpus
from girder_dask.worker.gpus import GpuAllocator
from tests.support.deadline import SECONDS, until
from tests.support.run_worker import Worker


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (None, ["0", "1"]),
        ("", []),
        ("-1", []),
        ("3, 1", ["3", "1"]),
        ("2,-1,3", ["2"]),
        ("GPU-8932f937,GPU-d3c1", ["GPU-8932f937", "GPU-d3c1"]),
    ],
)
def test_the_ids_are_those_that_cuda_would_see(
    monkeypatch: pytest.MonkeyPatch, value: str | None, ids: list[str]
) -> None:
    if value is None:
        monkeypatch.delenv(gpus.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(gpus.VARIABLE, value)
    assert gpus.visible_ids(2.0) == ids
    with gpus.exposed(["9"]):
        assert gpus.visible_ids(2.0) == ids, "another worker of this process starts meanwhile"


def test_nobody_has_the_gpu_of_another() -> None:
    pool = GpuAllocator(["0", "1", "2"])
    with pool.allocated(1) as a, pool.allocated(1) as b:
        with pool.allocated(1) as c:
            assert sorted(a + b + c) == ["0", "1", "2"]
        with pool.allocated(1) as again:
            assert again == c
    with pool.allocated(3) as whole:
        assert whole == ("0", "1", "2")


def test_shares_are_of_one_gpu_as_long_as_they_fit() -> None:
    pool = GpuAllocator(["0", "1"])
    with pool.allocated(0.5) as a, pool.allocated(0.5) as b, pool.allocated(1) as whole:
        assert a == b
        assert whole != a
    with pool.allocated(0.6) as a, pool.allocated(0.6) as b:
        assert a != b


def test_a_worker_without_gpus_lends_none() -> None:
    with GpuAllocator().allocated(1) as ids:
        assert ids == ()


@pytest.mark.parametrize("own", [None, "4,5"])
def test_the_variable_is_put_back(monkeypatch: pytest.MonkeyPatch, own: str | None) -> None:
    if own is None:
        monkeypatch.delenv(gpus.VARIABLE, raising=False)
    else:
        monkeypatch.setenv(gpus.VARIABLE, own)
    with gpus.exposed(["5"]) as done:
        assert done
        assert os.environ[gpus.VARIABLE] == "5"
        assert gpus.environment([]).get(gpus.VARIABLE) == own
        assert gpus.environment(["4"])[gpus.VARIABLE] == "4"
    assert os.environ.get(gpus.VARIABLE) == own


# -- in runs -------------------------------------------------------------------------------

started = threading.Event()
go_on = threading.Event()


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    started.clear()
    go_on.clear()
    monkeypatch.setenv(gpus.VARIABLE, "4,5")
    opened = Worker(tmp_path)
    opened.context.gpus = GpuAllocator(["4", "5"])
    yield opened
    go_on.set()
    opened.close()


@task
def waits() -> str:
    started.set()
    assert go_on.wait(SECONDS)
    return os.environ[gpus.VARIABLE]


def look() -> tuple[Any, ...]:
    shown = subprocess.run(
        ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"], stdout=subprocess.PIPE, text=True, check=True
    )
    return os.getpid(), os.environ[gpus.VARIABLE], shown.stdout.strip(), current_job().request.gpus


def test_a_run_in_a_thread_has_its_gpus_in_the_environment(worker: Worker) -> None:
    found = worker.outcome(look, resources={"GPU": 1.0})
    assert found == (os.getpid(), "4", "4", ("4",))
    assert os.environ[gpus.VARIABLE] == "4,5"


def test_a_second_run_goes_into_a_process_of_its_own(worker: Worker) -> None:
    first = worker.begin(worker.run(None, task=waits.name, resources={"GPU": 1.0}))
    assert started.wait(SECONDS)
    pid, *found = worker.outcome(look, resources={"GPU": 1.0}, job_id="b")
    assert pid != os.getpid()
    assert found == ["5", "5", ("5",)]
    assert worker.log("b") == (
        "Another task uses GPUs in this worker's process, so this one, with GPU 5, runs in a "
        "process of its own.\n"
    )
    assert worker.outcome(lambda: 1, job_id="c") == 1
    go_on.set()
    assert first.result(SECONDS) == "4"
    until(lambda: os.environ[gpus.VARIABLE] == "4,5")


def test_gpus_are_given_back_after_an_error(worker: Worker) -> None:
    for n in range(4):
        error = worker.outcome(lambda: 1 / 0, resources={"GPU": 2.0}, job_id=str(n))
        assert isinstance(error, ZeroDivisionError)
    assert worker.outcome(look, resources={"GPU": 2.0}, job_id="b")[1] == "4,5"
