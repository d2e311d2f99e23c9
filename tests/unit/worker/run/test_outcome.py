"""The outcome of a run: whatever the task does, its end is reported."""

from __future__ import annotations

import gc
import sys
import textwrap
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from girder_dask import task
from girder_dask.errors import (
    JobCanceled,
    JobFailed,
    TaskNotFoundError,
)
from girder_dask.jobs import JobStatus
from girder_dask.protocol.exceptions import open_exception
from girder_dask.protocol.payload import open_value, pack_call
from girder_dask.tasks.running_job import RunningJob
from tests.support.deadline import SECONDS, until
from tests.support.run_worker import WORKER, Worker

S = JobStatus


def test_a_function_that_returns_ends_in_success(worker: Worker) -> None:
    assert worker.outcome(lambda a, b: a + b, 1, kwargs={"b": 2}) == 3
    assert worker.statuses() == [S.RUNNING, S.SUCCESS]
    assert worker.end.result is not None
    assert open_value(worker.end.result or b"", unpickle=False) == 3
    assert (worker.end.error, worker.end.attempt, worker.end.worker) == (None, 1, WORKER)
    assert worker.context.runs == {}


@task
def a_task(n: int) -> int:
    return 2 * n


@task(bind=True)
def a_bound_task(self: RunningJob, n: int) -> tuple[str | None, int]:
    return self.id, n


def test_a_task_is_found_by_its_name(worker: Worker) -> None:
    assert worker.outcome(None, 4, task=a_task.name) == 8
    assert worker.outcome(None, 4, task=a_bound_task.name, job_id="b") == ("b", 4)


def user_function(source: str) -> Callable[..., Any]:
    # What a traceback says of the file is up to cloudpickle, which may take its name away.
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(textwrap.dedent(source), "/site/coins.py", "exec"), names)  # noqa: S102 - ours
    return names["work"]  # type: ignore[no-any-return]


def test_an_error_is_told_with_the_frames_of_the_user_alone(worker: Worker) -> None:
    error = worker.outcome(
        user_function("""
            def work():
                return deeper()
            def deeper():
                raise ValueError("no coins")
        """)
    )
    assert isinstance(error, ValueError)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert worker.end.error == "ValueError: no coins"
    assert worker.end.result is None
    log = worker.log()
    assert log.startswith("Traceback (most recent call last):\n")
    assert "line 3, in work" in log
    assert "line 5, in deeper" in log
    assert log.endswith("ValueError: no coins\n")
    assert "runner.py" not in log


def test_the_frames_of_our_decorator_are_left_out_too(worker: Worker) -> None:
    worker.outcome(None, "not a number", task=a_failing_task.name)
    assert "ZeroDivisionError" in worker.log()
    assert "in a_failing_task" in worker.log()
    assert "girder_dask/tasks/task.py" not in worker.log()


@task
def a_failing_task(n: Any) -> float:
    return 1 / 0


def test_an_exit_does_not_end_the_worker(worker: Worker) -> None:
    error = worker.outcome(user_function("import sys\ndef work():\n    sys.exit(3)\n"))
    assert isinstance(error, JobFailed)
    assert error.job_id == "a"
    assert worker.end.error == "SystemExit: 3"
    assert "sys.exit(3)" in worker.log()
    assert ", line 3" in worker.log()
    assert worker.outcome(lambda: 1, job_id="b") == 1


def test_a_keyboard_interrupt_does_not_end_the_worker(worker: Worker) -> None:
    error = worker.outcome(user_function("def work():\n    raise KeyboardInterrupt\n"))
    assert isinstance(error, JobFailed)
    assert worker.statuses()[-1] == S.ERROR
    assert worker.end.error == "KeyboardInterrupt"
    assert "which ends it as an error" in worker.log()


class Odd(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_error_of_any_kind_ends_a_run(worker: Worker) -> None:
    def work() -> None:
        raise Odd

    assert isinstance(worker.outcome(work), JobFailed)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert "Odd" in worker.log()


# -- what is missing -----------------------------------------------------------------------


def test_a_package_that_is_missing_is_named_with_what_to_do(worker: Worker) -> None:
    error = worker.outcome(None, task="no_such_tasks.coins:count", package="no-such-tasks 1.2")
    assert isinstance(error, ModuleNotFoundError)
    assert worker.statuses() == [S.ERROR]
    assert f"cannot run on worker {WORKER} on node7" in worker.log()
    assert worker.log().endswith("    pip install 'no-such-tasks==1.2'\n")
    assert "Traceback" not in worker.log()


def test_a_module_that_the_arguments_need_is_named(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_in_girder.py").write_text("class Coin: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import only_in_girder  # type: ignore[import-not-found]

    payload = pack_call((only_in_girder.Coin(),), {})
    del sys.modules["only_in_girder"]
    monkeypatch.undo()

    worker.outcome(None, payload=payload, task=a_task.name)
    assert worker.statuses() == [S.ERROR]
    assert worker.end.error == "ModuleNotFoundError: No module named 'only_in_girder'"
    assert "pip install 'only_in_girder'" in worker.log()
    assert WORKER in worker.log()


def test_a_task_that_its_module_lacks_is_named(worker: Worker) -> None:
    error = worker.outcome(None, task=f"{__name__}:no_such_task")
    assert isinstance(error, TaskNotFoundError)
    assert f"cannot run on worker {WORKER} on node7" in worker.log()
    assert "no task 'no_such_task'" in worker.log()
    assert "Traceback" not in worker.log()


def test_an_import_that_fails_in_the_function_is_the_users_own(worker: Worker) -> None:
    worker.outcome(user_function("def work():\n    import no_such_module_anywhere\n"))
    assert "line 2, in work" in worker.log()
    assert "pip install" not in worker.log()


def test_bytes_that_are_no_call_end_in_error(worker: Worker) -> None:
    worker.outcome(None, payload=b"garbage")
    assert worker.statuses() == [S.ERROR]
    assert "not a call that girder_dask packed" in worker.log()


# -- inputs and results --------------------------------------------------------------------


def test_what_was_raised_is_kept_with_its_traceback(worker: Worker) -> None:
    worker.outcome(user_function("def work():\n    raise KeyError('coins')\n"))
    error, text = open_exception(worker.end.exception or b"", unpickle=False)
    assert repr(error) == "KeyError('coins')"
    assert text == worker.log()


def test_an_exception_of_any_size_is_kept_within_bounds(worker: Worker) -> None:
    worker.outcome(user_function("def work():\n    raise ValueError('é' * 3_000_000)\n"))
    assert 0 < len(worker.end.exception or b"") <= 256 * 1024


def test_nothing_is_kept_of_the_end_of_a_canceled_job(worker: Worker) -> None:
    run = worker.run(lambda: None)
    run.control.cancel()
    assert isinstance(worker.begin(run).exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.CANCELED])
    assert worker.end.exception is None


class _Large:
    """Something that takes much memory."""


_larges: list[weakref.ref[_Large]] = []


@task
def fails_with_a_large_value(kind: type[BaseException]) -> None:
    value = _Large()
    _larges.append(weakref.ref(value))
    raise kind("no coins")


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_what_a_task_had_that_failed_is_released_at_once(
    worker: Worker, kind: type[BaseException]
) -> None:
    gc.disable()
    try:
        assert isinstance(worker.outcome(None, kind, task=fails_with_a_large_value.name), Exception)
        until(lambda: _larges[-1]() is None, seconds=2)
    finally:
        gc.enable()
