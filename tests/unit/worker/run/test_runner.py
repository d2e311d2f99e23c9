"""One run of a job: whatever the task does, its end is told."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import multiprocessing.pool
import os
import queue
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from girder_dask import current_job, task
from girder_dask.errors import (
    JobCanceled,
    JobFailed,
    JobInterrupted,
    JobTimeout,
    TaskNotFoundError,
    TransformError,
)
from girder_dask.jobs import JobStatus
from girder_dask.protocol.exceptions import open_exception
from girder_dask.protocol.payload import Unpicklable, open_value, pack_call, pack_value
from girder_dask.tasks.context import RunningJob
from girder_dask.worker.cancellation import RunCanceller
from girder_dask.worker.job_log.log import current
from tests.support.deadline import SECONDS, until
from tests.support.run_worker import WORKER, Worker, brought, captured

S = JobStatus


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    opened = Worker(tmp_path)
    yield opened
    go_on.set()  # whatever waits for it, also when the test has failed
    opened.close()


# -- the ends of a run ---------------------------------------------------------------------


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
    assert "no call that girder_dask has packed" in worker.log()


# -- inputs and results --------------------------------------------------------------------

did: list[Any] = []


def do(what: str) -> None:
    """Note something. Nested functions travel by value, with copies of what they refer to."""
    did.append(what)


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    did.clear()


class Input:
    """A transform, as a package of tasks may define it."""

    gc: Any = None
    work_dir: Path | None = None

    def __init__(self, name: str, error: BaseException | None = None, bad_cleanup: bool = False):
        self.name, self.error, self.bad_cleanup = name, error, bad_cleanup

    def __repr__(self) -> str:
        return f"Input({self.name!r})"

    def transform(self) -> str:
        did.append(f"fetch {self.name}")
        assert self.work_dir is not None
        assert self.work_dir.is_dir()
        if self.error is not None:
            raise self.error
        return self.name.upper()

    def cleanup(self) -> None:
        did.append(f"clean {self.name}")
        if self.bad_cleanup:
            raise OSError("the disk is gone")


class Output:
    job: Any = None
    gc: Any = None

    def __init__(self, name: str, error: Exception | None = None, deaf: bool = False) -> None:
        self.name, self.error, self.deaf = name, error, deaf

    def __repr__(self) -> str:
        return f"Output({self.name!r})"

    def transform(self, data: Any) -> str:
        did.append(f"push {self.name} {data} of {self.job['_id']} {self.job['title']}")
        if self.error is not None:
            raise self.error
        return f"{self.name}({data})"

    def exception(self) -> None:
        did.append(f"exception {self.name}")
        if self.deaf:
            raise OSError("no ears")

    def cleanup(self) -> None:
        did.append(f"clean {self.name}")


def test_inputs_are_fetched_in_order_and_cleaned_up_in_reverse(worker: Worker) -> None:
    def work(a: Any, *, k: Any) -> Any:
        do("work")
        return [a, k]

    value = worker.outcome(work, [Input("a"), {"deep": (Input("b"), 1)}], kwargs={"k": Input("c")})
    assert value == [["A", {"deep": ("B", 1)}], "C"]
    assert did == ["fetch a", "fetch b", "fetch c", "work", "clean c", "clean b", "clean a"]
    assert worker.statuses() == [S.FETCHING_INPUT, S.RUNNING, S.SUCCESS]


def test_an_input_that_fails_ends_the_run_and_what_was_fetched_is_cleaned_up(
    worker: Worker,
) -> None:
    broken = Input("b", TransformError("GirderFileId('5f'): there is no such file."))
    worker.outcome(lambda *_: do("work"), Input("a"), broken, Input("c"))
    assert did == ["fetch a", "fetch b", "clean c", "clean b", "clean a"]
    assert worker.statuses() == [S.FETCHING_INPUT, S.ERROR]
    assert worker.log() == "GirderFileId('5f'): there is no such file.\n"


def test_the_first_error_is_kept_when_cleaning_up_fails(worker: Worker) -> None:
    def work(*_: Any) -> None:
        raise ValueError("no coins")

    error = worker.outcome(work, Input("a", bad_cleanup=True), Input("b", bad_cleanup=True))
    assert isinstance(error, ValueError)
    assert worker.end.error == "ValueError: no coins"
    assert did[-2:] == ["clean b", "clean a"]
    assert "Cleaning up Input('b') failed: OSError: the disk is gone\n" in worker.log()
    assert "Cleaning up Input('a') failed: OSError: the disk is gone\n" in worker.log()


class BadInput(Input):
    """One whose cleanup gets past ``except Exception``, and whose repr fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")

    def cleanup(self) -> None:
        do(f"clean {self.name}")
        raise SystemExit(3)


def test_cleaning_up_cannot_end_the_worker(worker: Worker) -> None:
    run = worker.run(lambda *_: 1, Input("a"), BadInput("b"))
    future = worker.begin(run)
    assert future.exception(SECONDS) is None
    assert future.result() == 1
    until(lambda: worker.statuses()[-1:] == [S.SUCCESS])
    assert did[-2:] == ["clean b", "clean a"]
    assert list(worker.context.directory.glob("*")) == []


def test_cleaning_up_that_fails_does_not_spoil_a_result(worker: Worker) -> None:
    assert worker.outcome(lambda a: a, Input("a", bad_cleanup=True)) == "A"
    assert worker.statuses()[-1] == S.SUCCESS
    assert "Cleaning up Input('a') failed" in worker.log()


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), ValueError("x")])
def test_everything_is_cleaned_up_whatever_happens(worker: Worker, error: BaseException) -> None:
    def work(*_: Any) -> None:
        raise error

    worker.outcome(work, Input("a"), Input("b"))
    assert did[-2:] == ["clean b", "clean a"]


def test_a_single_result_goes_to_the_first_hook(worker: Worker) -> None:
    assert worker.outcome(lambda: 1, hooks=[Output("x"), Output("y")]) == "x(1)"
    assert did == ["push x 1 of a Count", "clean y", "clean x"]
    assert worker.statuses() == [S.RUNNING, S.PUSHING_OUTPUT, S.SUCCESS]
    assert worker.end.result is not None
    assert open_value(worker.end.result or b"", unpickle=False) == "x(1)"


def test_each_hook_gets_the_element_at_its_place(worker: Worker) -> None:
    assert worker.outcome(lambda: (1, 2, 3), hooks=[Output("x"), None, Output("z")]) == (
        "x(1)",
        2,
        "z(3)",
    )
    assert worker.outcome(lambda: (1, 2), hooks=[Output("x")], job_id="b") == ("x(1)", 2)
    assert worker.outcome(lambda: [1, 2], hooks=[Output("x")], job_id="c") == "x([1, 2])"


def test_a_hook_that_fails_ends_the_run_in_error(worker: Worker) -> None:
    worker.outcome(lambda: 1, hooks=[Output("x", TransformError("The item is gone."))])
    assert worker.statuses() == [S.RUNNING, S.PUSHING_OUTPUT, S.ERROR]
    assert worker.log() == "The item is gone.\n"
    assert did[-1] == "clean x"


def test_hooks_hear_that_the_function_raised(worker: Worker) -> None:
    def work() -> None:
        raise ValueError("no coins")

    worker.outcome(work, hooks=[Output("x", deaf=True), None, Output("y")])
    assert did == ["exception x", "exception y", "clean y", "clean x"]
    assert worker.end.error == "ValueError: no coins"
    assert "exception() of Output('x') failed: OSError: no ears\n" in worker.log()


def test_hooks_hear_that_an_input_failed(worker: Worker) -> None:
    broken = Input("a", TransformError("There is no such file."))
    worker.outcome(lambda *_: do("work"), broken, hooks=[Output("x"), [Output("y")]])
    assert did == ["fetch a", "exception x", "exception y", "clean y", "clean x", "clean a"]
    assert worker.end.error is not None
    assert worker.end.error.endswith("There is no such file.")


def test_hooks_hear_that_a_task_is_missing(worker: Worker) -> None:
    worker.outcome(None, task=f"{__name__}:no_such_task", hooks=[Output("x")])
    assert did == ["exception x", "clean x"]
    assert "no task 'no_such_task'" in worker.log()


def test_hooks_hear_that_another_hook_failed(worker: Worker) -> None:
    worker.outcome(lambda: (1, 2), hooks=[Output("x"), Output("y", OSError("no disk"))])
    assert did[2:] == ["exception x", "exception y", "clean y", "clean x"]
    assert worker.end.error == "OSError: no disk"


class Exiting(Output):
    def exception(self) -> None:
        raise SystemExit(3)


def test_the_first_error_is_kept_whatever_a_hook_raises(worker: Worker) -> None:
    def work() -> None:
        raise ValueError("no coins")

    worker.outcome(work, hooks=[Exiting("x"), Output("y")])
    assert did == ["exception y", "clean y", "clean x"]
    assert worker.end.error == "ValueError: no coins"
    assert "exception() of Output('x') failed: SystemExit: 3\n" in worker.log()


def test_hooks_in_containers_get_what_is_at_their_place(worker: Worker) -> None:
    hooks: list[Any] = [[Output("x"), None], (Output("y"),), {"a": {"b": Output("z")}}]
    value = worker.outcome(lambda: ([1, 2, 3], (4, 5), {"a": {"b": 6, "c": 7}}), hooks=hooks)
    assert value == (["x(1)", 2, 3], ("y(4)", 5), {"a": {"b": "z(6)", "c": 7}})
    value = worker.outcome(lambda: {"a": 1}, hooks=[{"a": Output("x")}], job_id="b")
    assert value == {"a": "x(1)"}


@pytest.mark.parametrize(
    ("hooks", "value", "wanted"),
    [
        ([[Output("x"), Output("y")]], ([1],), "a list or tuple of 2 or more elements"),
        ([[Output("x")]], 1, "a list or tuple of 1 or more elements"),
        ([{"a": Output("x")}], {"b": 1}, "a dict with 'a'"),
    ],
)
def test_hooks_that_do_not_fit_the_result_are_an_error(
    worker: Worker, hooks: Any, value: Any, wanted: str
) -> None:
    worker.outcome(lambda: value, hooks=hooks)
    assert worker.statuses()[-1] == S.ERROR
    assert f"hooks for the elements of {wanted}" in worker.log()
    assert "exception x" in did


def test_a_run_that_is_no_longer_heard_pushes_nothing(worker: Worker) -> None:
    run = worker.run(lambda: 1, hooks=[Output("x")])
    worker.dropped.add(run._sink.run)
    error = worker.begin(run).exception(SECONDS)
    assert isinstance(error, JobCanceled)
    assert did == ["clean x"]


thaws: list[Callable[[], None]] = []


class Frozen(Output):
    """Stands still in the middle, while others go on."""

    def transform(self, data: Any) -> Any:
        thaws.pop()()
        return super().transform(data)


def test_a_run_that_is_no_longer_heard_pushes_nothing_more(worker: Worker) -> None:
    """As when it was frozen between two uploads."""

    def thaw() -> None:
        worker.dropped.add(run._sink.run)
        run._sink.write("thawed\n")
        until(lambda: run._sink.is_dropped)

    thaws.append(thaw)
    run = worker.run(lambda: (1, 2), hooks=[Frozen("x"), Output("y")])
    error = worker.begin(run).exception(SECONDS)
    assert isinstance(error, JobCanceled)
    assert [line for line in did if "push" in line] == ["push x 1 of a Count"]


# -- what is kept of the value -------------------------------------------------------------


def test_a_value_that_cannot_be_pickled_is_not_kept_but_is_no_error(worker: Worker) -> None:
    value = worker.outcome(threading.Lock)
    assert isinstance(value, Unpicklable)  # Dask can bring that to whoever asks
    assert value.reason == worker.end.error
    assert worker.statuses()[-1] == S.SUCCESS
    assert worker.end.result is None
    assert worker.end.error is not None
    assert worker.end.error.startswith("it cannot be pickled (TypeError: cannot pickle")


def test_a_value_that_is_too_large_is_not_kept_but_is_no_error(worker: Worker) -> None:
    size = len(pack_value(b"x" * 6000))
    assert worker.outcome(lambda: b"x" * 6000) == b"x" * 6000
    assert worker.statuses()[-1] == S.SUCCESS
    assert worker.end.result is None
    assert worker.end.error == (
        f"it takes {size:,} bytes, more than the 1,000 that are kept with a job "
        "(girder.worker.max-result)"
    )
    assert f"girder_dask: the result is not kept with the job: {worker.end.error}." in worker.log()


def test_a_hook_without_a_value_is_named(worker: Worker, tmp_path: Path) -> None:
    class Sink:
        def __init__(self, name: str) -> None:
            self.name = name

        def transform(self, value: Any) -> Any:
            return value

        def __repr__(self) -> str:
            return f"Sink({self.name!r})"

    worker.outcome(lambda: (1, 2), hooks=[Sink("a"), None, Sink("c"), {"x": Sink("d")}])
    assert worker.statuses()[-1] == S.SUCCESS
    lines = [line for line in worker.log().splitlines() if "had nothing to do" in line]
    assert lines == [
        f"girder_dask: Sink('{name}') had nothing to do: it is the result hook for value {n}, and "
        "the task returned 2."
        for name, n in (("c", 3), ("d", 4))
    ]


# -- surroundings --------------------------------------------------------------------------


def test_the_task_can_ask_for_its_job(worker: Worker) -> None:
    seen: list[Any] = []

    def child() -> None:
        seen.append(current_job().id)

    def work() -> tuple[Any, ...]:
        job = current_job()
        thread = threading.Thread(target=child)
        thread.start()
        thread.join()
        assert job.work_dir is not None
        return job.id, job.title, job.request.attempt, job.request.hostname, job.work_dir.is_dir()

    with captured():
        # By reference, so that it writes to this list.
        run = worker.run(None, task="m:f", attempt=3)
        run._function = lambda _call: work  # type: ignore[method-assign, assignment]
        value = worker.begin(run).result(SECONDS)
    assert value == ("a", "Count", 3, "node7", True)
    assert seen == ["a"]


def test_the_client_has_the_rights_of_the_job_and_no_more(worker: Worker) -> None:
    def work() -> tuple[str, str]:
        client = current_job().girder_client
        return client.urlBase, client.token

    shown = worker.outcome(work, token="SECRET", girder_api_url="http://girder/api/v1")
    assert shown == ("http://girder/api/v1/", "SECRET")
    worker.context.api_url = "http://inside:8080/api/v1"
    shown = worker.outcome(work, token="SECRET", girder_api_url="http://girder/api/v1", job_id="b")
    assert shown[0] == "http://inside:8080/api/v1/", "the worker's own configuration comes first"
    assert "SECRET" not in worker.log() + repr(worker.run(None, token="SECRET"))


def test_afterwards_nothing_is_left(worker: Worker) -> None:
    def work() -> str:
        directory = current_job().work_dir
        assert directory is not None
        (directory / "sub").mkdir()
        (directory / "sub" / "x").write_text("x")
        return str(directory)

    for fails in (False, True):
        job_id = f"job{fails}"
        name = worker.outcome(work if not fails else lambda: 1 / 0, job_id=job_id)
        assert fails or not Path(name).exists()
    assert list(worker.context.directory.glob("*")) == []
    left = worker.threads.submit(lambda: (current_job().id, current.get())).result(SECONDS)
    assert left == (None, None)


def test_a_work_directory_that_stays_is_told(worker: Worker, monkeypatch: Any) -> None:
    def fails(_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("girder_dask.worker.run.workspace.rmtree", fails)
    assert worker.outcome(lambda: (current_job().work_dir / "left").write_text("x"))
    assert worker.statuses()[-1] == S.SUCCESS
    assert "Cleaning up after the job failed: OSError: the disk is gone\n" in worker.log()


def test_output_progress_and_state_are_told(worker: Worker) -> None:
    def work() -> None:
        manager = current_job().job_manager
        print("printed")
        manager.write("written\n")
        manager.updateProgress(total=2, current=1, message="half", forceFlush=True)
        manager.updateStatus(S.CONVERTING_OUTPUT)
        print("printed again")

    with captured():
        worker.outcome(work)
    assert worker.log() == "printed\nwritten\nprinted again\n"
    assert worker.statuses() == [S.RUNNING, S.CONVERTING_OUTPUT, S.SUCCESS]
    shown: dict[str, Any] = {}
    for event in worker.events:
        shown |= event.progress or {}
    assert shown == {"total": 2, "current": 1, "message": "half"}


def test_a_directory_that_cannot_be_made_ends_the_run_in_error(worker: Worker) -> None:
    worker.context.directory.write_text("a file is in the way")
    worker.outcome(lambda: current_job().work_dir)
    assert worker.statuses()[-1] == S.ERROR
    assert "NotADirectoryError" in worker.log()
    assert worker.outcome(lambda: 1, job_id="b") == 1, "who needs none is not concerned"


# -- being stopped -------------------------------------------------------------------------

started = threading.Event()
go_on = threading.Event()


@pytest.fixture(autouse=True)
def _not_started() -> None:
    started.clear()
    go_on.clear()


@task
def patient() -> str:
    started.set()
    while not current_job().canceled:
        assert not go_on.wait(0.002)
    return "stopped by itself"


@task
def deaf() -> None:
    started.set()
    while not go_on.is_set():
        pass


@task
def stubborn() -> str:
    started.set()
    try:
        while not go_on.is_set():
            pass
    except JobInterrupted:
        return "ignored"
    return "never stopped"


def test_a_job_canceled_before_it_begins_does_not_run(worker: Worker) -> None:
    run = worker.run(None, task=patient.name)
    run.control.cancel()
    assert isinstance(worker.begin(run).exception(SECONDS), JobCanceled)
    assert not started.is_set()
    until(lambda: worker.statuses() == [S.CANCELED])
    assert worker.log() == "The job was canceled.\n"


def test_a_key_that_was_refused_is_not_begun_with(worker: Worker) -> None:
    """Its cancellation came while it waited on this worker."""
    called: list[int] = []
    run = worker.run(called.append, 1)
    canceller = RunCanceller(worker.context.runs, worker.context.refused, grace=0.0)
    assert canceller.cancel([run.control.key]) == {run.control.key}
    assert isinstance(worker.begin(run).exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.CANCELED])
    assert called == []
    assert worker.log() == "The job was canceled.\n"


interrupted: list[float] = []


@task
def counts() -> None:
    interrupted.clear()
    started.set()
    while not go_on.is_set():
        try:
            while not go_on.wait(0.002):
                pass
        except JobInterrupted:
            interrupted.append(time.monotonic())


@task
def answers() -> None:
    started.set()
    try:
        while not go_on.wait(0.002):
            pass
    except JobInterrupted as e:
        raise ValueError("in an answer of its own") from e


def test_a_canceled_job_that_answers_with_an_error_is_canceled(worker: Worker) -> None:
    run = worker.run(None, task=answers.name, retries=3)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.cancel()
    run.control.interrupt()
    error = future.exception(SECONDS)
    assert isinstance(error and brought(error), ValueError)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    assert "ValueError: in an answer of its own\n" in worker.log()
    assert worker.log().endswith("The job was canceled.\n")
    assert worker.end.error is None


def test_a_run_that_nobody_hears_does_not_say_how_the_job_ended(worker: Worker) -> None:
    run = worker.run(None, task=patient.name)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.drop()
    future.exception(SECONDS)
    assert not run.control.reports_end
    until(lambda: run.control.id not in worker.context.runs)
    assert worker.statuses() == [S.RUNNING]


def test_to_be_stopped_again_changes_neither_grace_nor_count(worker: Worker) -> None:
    """As when each batch of what a run prints brings the answer that nobody hears it."""
    run = worker.run(None, task=counts.name)

    async def stop() -> None:
        canceller = RunCanceller(worker.context.runs, worker.context.refused, grace=0.5)
        canceller.cancel([run.control.key])
        for _ in range(60):
            canceller.drop([run.control.id])
            await asyncio.sleep(0.02)

    future = worker.begin(run)
    assert started.wait(SECONDS)
    begun = time.monotonic()
    asyncio.run(stop())
    go_on.set()
    future.exception(SECONDS)
    assert len(interrupted) == 1, "within 1.2 s: once, after the grace"
    assert interrupted[0] - begun >= 0.45


def test_a_job_canceled_before_it_begins_fetches_nothing(worker: Worker) -> None:
    run = worker.run(lambda _: None, Input("a"))
    run.control.cancel()
    assert isinstance(worker.begin(run).exception(SECONDS), JobCanceled)
    assert did == []


def test_a_task_may_stop_by_itself(worker: Worker) -> None:
    run = worker.run(None, task=patient.name)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    assert worker.context.runs == {run.control.id: run.control}
    run.control.cancel()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])


def test_a_loop_in_python_is_interrupted(worker: Worker) -> None:
    run = worker.run(None, task=deaf.name)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.cancel()
    run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    assert list(worker.context.directory.glob("*")) == []


def test_a_task_that_swallows_the_interruption_is_canceled_nevertheless(worker: Worker) -> None:
    run = worker.run(None, task=stubborn.name)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.cancel()
    run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses()[-1:] == [S.CANCELED])


@pytest.mark.parametrize("name", ["deaf", "stubborn"])
def test_a_call_that_takes_longer_than_it_may_ends_in_error(worker: Worker, name: str) -> None:
    worker.outcome(None, task=f"{__name__}:{name}", timeout=0.05)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert worker.end.error is not None
    assert "0.05 s" in worker.log()
    assert worker.outcome(lambda: 1, job_id="b", timeout=SECONDS) == 1


def test_the_watch_over_a_call_ends_with_it(worker: Worker) -> None:
    before = threading.active_count()
    for n in range(5):
        assert worker.outcome(lambda: 1, job_id=str(n), timeout=SECONDS) == 1
    until(lambda: threading.active_count() <= before + 4)


def test_after_its_end_a_run_interrupts_nobody(worker: Worker) -> None:
    run = worker.run(lambda: 1)
    worker.threads = concurrent.futures.ThreadPoolExecutor(1)
    assert worker.begin(run).result(SECONDS) == 1
    run.control.cancel()
    run.control.interrupt()
    assert worker.threads.submit(lambda: sum(range(100_000))).result(SECONDS) == 4999950000


def test_an_interruption_while_the_end_is_written_does_not_lose_it(worker: Worker) -> None:
    """The log is full because the scheduler does not answer; its writer waits in the runner."""
    worker.context.outbox = worker.make_outbox(capacity=5)
    first = worker.run(None, task=deaf.name, job_id="b")  # keeps the outbox busy

    def work() -> None:
        current_job().job_manager.write("0123456789\n")
        raise ValueError("no coins")

    worker.open.clear()
    busy = worker.begin(first)
    assert started.wait(SECONDS)
    until(lambda: worker.sends)
    run = worker.run(work)
    future = worker.begin(run)

    def waits_for_room() -> bool:
        for innermost in sys._current_frames().values():
            names = {frame.f_code.co_name for frame, _ in traceback.walk_stack(innermost)}
            if {"wait_for_room", "failed"} <= names:
                return True
        return False

    until(waits_for_room)
    run.control.cancel()
    run.control.interrupt()
    worker.open.set()
    error = future.exception(SECONDS)
    go_on.set()
    busy.result(SECONDS)
    until(lambda: worker.statuses("a")[-1:] in ([S.ERROR], [S.CANCELED]), 5)
    assert isinstance(error and brought(error), (ValueError, JobCanceled))
    assert list(worker.context.directory.glob("*")) == []


def test_the_end_of_one_run_of_a_job_does_not_hide_another(worker: Worker) -> None:
    """A scheduler may have given up the old attempt; the new one must still be stoppable."""
    old = worker.run(None, task=patient.name, attempt=1)
    old_future = worker.begin(old)
    assert started.wait(SECONDS)
    started.clear()
    new = worker.run(None, task=patient.name, attempt=2)
    new_future = worker.begin(new)
    assert started.wait(SECONDS)
    old.control.cancel()
    assert isinstance(old_future.exception(SECONDS), JobCanceled)
    try:
        assert worker.context.runs == {new.control.id: new.control}
    finally:
        new.control.cancel()
        new_future.exception(SECONDS)


def test_many_runs_at_once_keep_to_themselves(worker: Worker) -> None:
    def work(name: str) -> str:
        for n in range(100):
            print(f"{name} {n}")
            if n % 20 == 0:
                time.sleep(0)
        return current_job().id or ""

    names = [f"job{n}" for n in range(12)]
    with captured():
        futures = {name: worker.begin(worker.run(work, name, job_id=name)) for name in names}
        assert {name: f.result(SECONDS) for name, f in futures.items()} == {n: n for n in names}
    until(lambda: all(worker.statuses(name)[-1:] == [S.SUCCESS] for name in names))
    for name in names:
        assert worker.log(name) == "".join(f"{name} {n}\n" for n in range(100))


SHELL = "echo $$ > {path}; trap '' TERM; sleep {seconds}; sleep {seconds}"


def running(seconds: str) -> list[str]:
    """Return the programs that were started to sleep so long."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if seconds.encode() in words:
            found.append(path.parent.name)
    return found


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_subprocesses_that_a_task_waits_for_are_ended(
    worker: Worker, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "pid"

    def work(command: str) -> None:
        import subprocess

        subprocess.run(command, shell=True, check=False)  # noqa: S602

    timeout = 0.5 if how == "timeout" else None
    seconds = f"1000.{os.getpid()}"
    run = worker.run(work, SHELL.format(path=path, seconds=seconds), timeout=timeout)
    with captured():
        future = worker.begin(run)
        until(lambda: running(seconds))
        if how == "cancel":
            run.control.cancel()
            run.control.interrupt()
            run.control.interrupt()
        error = future.exception(SECONDS)
        expected = JobCanceled if how == "cancel" else JobTimeout
        assert isinstance(error and brought(error), expected)
    until(lambda: not running(seconds))
    assert not Path(f"/proc/{int(path.read_text())}").exists()


# It starts one, goes on itself and leaves it without a parent, in the worker's group.
BACKGROUND = "sleep {seconds} >/dev/null 2>&1 &"


@pytest.mark.parametrize("env", [None, {"PATH": os.environ["PATH"]}], ids=["worker's", "own"])
def test_a_subprocess_in_the_background_is_ended(
    worker: Worker, env: dict[str, str] | None
) -> None:
    def work(command: str) -> None:
        import subprocess

        subprocess.run(["sh", "-c", command], check=True, env=env)
        print("begun")
        while True:
            time.sleep(0.01)

    seconds, others = (f"{n}.{os.getpid()}" for n in (1001, 1002))
    run, other = (
        worker.run(work, BACKGROUND.format(seconds=s), job_id=s) for s in (seconds, others)
    )
    with captured():
        futures = [worker.begin(each) for each in (run, other)]
        until(lambda: all("begun" in worker.log(each) for each in (seconds, others)))
        run.control.cancel()
        run.control.interrupt()
        assert isinstance(futures[0].exception(SECONDS), JobCanceled)
        left = running(seconds), running(others)
        other.control.cancel()
        other.control.interrupt()
        futures[1].exception(SECONDS)
        for pid in [*running(seconds), *running(others)]:  # where this fails
            os.kill(int(pid), signal.SIGKILL)
    assert left[0] == []
    assert len(left[1]) == 1, "another run's goes on"


def test_a_subprocess_that_ignores_sigterm_does_not_outlive_its_worker(
    worker: Worker, tmp_path: Path
) -> None:
    path, seconds = tmp_path / "pid", f"1003.{os.getpid()}"

    def work(command: str) -> None:
        import subprocess

        subprocess.run(["sh", "-c", command], check=False)

    run = worker.run(work, SHELL.format(path=path, seconds=seconds))

    async def close() -> None:
        await RunCanceller(worker.context.runs, worker.context.refused, grace=60.0).close(1.0)

    with captured():
        future = worker.begin(run)
        until(lambda: running(seconds))
        begun = time.monotonic()
        asyncio.run_coroutine_threadsafe(close(), worker._loop).result(SECONDS)
        took, left = time.monotonic() - begun, running(seconds)
        for pid in [path.read_text().strip(), *running(seconds)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        future.exception(SECONDS)
    assert left == []
    assert took < 2


# -- the threads of a task -----------------------------------------------------------------


may_end = threading.Event()
at_work = threading.Event()


def leaves_a_thread() -> None:
    threading.Thread(target=may_end.wait, args=(SECONDS,), name="reader").start()


def leaves_a_daemon() -> None:
    threading.Thread(target=may_end.wait, args=(SECONDS,), daemon=True).start()


def leaves_work_in_a_pool() -> None:
    pools.append(concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="pool"))
    at_work.clear()
    pools[-1].submit(lambda: at_work.set() or may_end.wait(SECONDS))
    assert at_work.wait(SECONDS)


def leaves_an_idle_pool() -> None:
    pools.append(concurrent.futures.ThreadPoolExecutor(1))
    assert pools[-1].submit(len, "ab").result(SECONDS) == 2


def leaves_a_process() -> None:
    left.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))


def waits_for_a_process() -> None:
    subprocess.run(["true"], check=True)


def test_a_thread_of_a_daemon_is_told_and_holds_up_no_worker(worker: Worker) -> None:
    may_end.clear()
    run = worker.run(leaves_a_thread)
    with captured():
        # As the threads of Dask's workers are.
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(SECONDS)
        reader = next(each for each in threading.enumerate() if each.name == "reader")
        assert reader.daemon
        may_end.set()
        reader.join()
    until(lambda: worker.ended)
    assert "was still running: reader." in worker.log()


pools: list[concurrent.futures.ThreadPoolExecutor] = []
left: list[subprocess.Popen[bytes]] = []


@pytest.mark.parametrize(
    ("habit", "named"),
    [
        (leaves_a_thread, "reader"),
        (leaves_work_in_a_pool, "pool_0"),
        (leaves_a_process, "process "),
        (leaves_a_daemon, None),
        (leaves_an_idle_pool, None),
        (waits_for_a_process, None),
    ],
)
def test_what_goes_on_when_the_function_has_returned_is_told(
    worker: Worker, habit: Callable[[], None], named: str | None
) -> None:
    may_end.clear()
    try:
        with captured():
            worker.outcome(habit)
    finally:
        may_end.set()
        while pools:
            pools.pop().shutdown()
        while left:
            left.pop().communicate()
    said = "The task returned while what it had started was still running: "
    assert worker.statuses() == [S.RUNNING, S.SUCCESS]
    assert worker.log().startswith(f"{said}{named}") if named else worker.log() == ""


loops: dict[str, int] = {}


def loop(name: str) -> None:
    """Count, until it is interrupted."""
    loops.setdefault(name, 0)
    while not go_on.is_set():
        loops[name] += 1


def careless(name: str) -> None:
    """Count on after the first interruption."""
    with contextlib.suppress(JobInterrupted):
        loop(name)
    loop(name)


def held() -> None:
    """Wait in C code."""
    started.set()
    select.select([], [], [], 4)
    did.append("woke up")


@pytest.fixture
def inherited() -> Iterator[None]:
    loops.clear()
    with captured():
        yield


@task
def starts(targets: list[str], daemon: bool = False) -> None:
    for n, target in enumerate(targets):
        args = () if target == "held" else (f"{target}-{n}",)
        threading.Thread(target=globals()[target], args=args, daemon=daemon).start()
    until(lambda: len(loops) + targets.count("held") == len(targets))
    started.set()


@task
def waits_for_threads() -> None:
    thread = threading.Thread(target=loop, args=("a",))
    thread.start()
    until(lambda: loops)
    started.set()
    thread.join()


@task
def fills_pool() -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(loop, str(n)) for n in range(100)]
        until(lambda: len(loops) == 2)
        started.set()
        for future in futures:
            future.result()


@task
def fills_other_pool() -> None:
    with multiprocessing.pool.ThreadPool(2) as pool:
        result = pool.map_async(loop, [str(n) for n in range(100)], chunksize=1)
        until(lambda: len(loops) == 2)
        started.set()
        result.get()


@task
def has_consumer() -> None:
    """Feed a thread that waits for more, and that nobody tells of the end."""
    jobs: queue.Queue[str] = queue.Queue()

    def consume() -> None:
        while True:
            did.append(jobs.get())

    threading.Thread(target=consume).start()
    jobs.put("one")
    until(lambda: did == ["one"])
    started.set()
    deaf()


@task
def has_producer() -> None:
    """Wait for a thread that says nothing."""
    threading.Thread(target=loop, args=("a",)).start()
    until(lambda: loops)
    started.set()
    queue.Queue[str]().get()


kept: list[Any] = []


@task
def keeps_pools() -> None:
    """Leave pools that have nothing to do."""
    pool = concurrent.futures.ThreadPoolExecutor(2)
    other = multiprocessing.pool.ThreadPool(2)
    kept.extend([pool, other])
    list(pool.map(did.append, "ab"))
    other.map(did.append, "cd")
    started.set()
    deaf()


@task
def uses_pools() -> list[str]:
    pool, other = kept
    return [*pool.map(str.upper, "ab"), *other.map(str.upper, "cd")]


def stopped(worker: Worker, name: str, *args: Any, times: int = 1) -> None:
    """Run a task, cancel it, and return when it has ended."""
    run = worker.run(None, *args, task=f"{__name__}:{name}")
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.cancel()
    for _ in range(times):
        run.control.interrupt()
        concurrent.futures.wait([future], 1)
    assert isinstance(future.exception(SECONDS), JobCanceled)
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])


def none_counts() -> bool:
    before = dict(loops)
    time.sleep(0.05)
    return loops == before


@pytest.mark.usefixtures("inherited")
@pytest.mark.parametrize(
    "name", ["waits_for_threads", "fills_pool", "fills_other_pool", "has_producer"]
)
def test_threads_that_a_task_waits_for_end_with_it(worker: Worker, name: str) -> None:
    # A thread of the other pool takes what comes next, as the interruption is an Exception.
    stopped(worker, name, times=3 if name == "fills_other_pool" else 1)
    assert loops
    assert none_counts()
    assert worker.log() == "The job was canceled.\n"


@pytest.mark.usefixtures("inherited")
@pytest.mark.parametrize("daemon", [False, True])
def test_threads_that_a_task_has_left_are_interrupted_when_their_time_has_come(
    worker: Worker, daemon: bool
) -> None:
    run = worker.run(None, ["loop", "loop"], daemon, task=leaves.name)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.cancel()
    assert not concurrent.futures.wait([future], 0.2).done, "they have their grace too"
    assert not none_counts()
    run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    assert none_counts()


@pytest.mark.usefixtures("inherited")
def test_a_thread_that_catches_the_interruption_is_interrupted_again(worker: Worker) -> None:
    run = worker.run(None, ["careless"], task=leaves.name)
    future = worker.begin(run)
    assert started.wait(SECONDS)
    run.control.cancel()
    run.control.interrupt()
    assert not concurrent.futures.wait([future], 0.2).done
    assert not none_counts()
    run.control.interrupt()
    assert isinstance(future.exception(SECONDS), JobCanceled)
    assert none_counts()


@task
def leaves(targets: list[str], daemon: bool = False) -> None:
    starts(targets, daemon)
    patient()


@pytest.mark.usefixtures("inherited")
def test_a_thread_that_waits_for_more_is_woken(worker: Worker) -> None:
    stopped(worker, "has_consumer")
    until(lambda: not any("consume" in thread.name for thread in threading.enumerate()))
    assert did == ["one"]
    assert worker.log() == "The job was canceled.\n"


@pytest.mark.usefixtures("inherited")
def test_pools_that_have_nothing_to_do_are_left_to_the_next_job(worker: Worker) -> None:
    """They may be the property of a library, and serve other jobs."""
    try:
        stopped(worker, "keeps_pools")
        assert worker.outcome(None, task=uses_pools.name, job_id="b") == list("ABCD")
    finally:
        kept.pop().terminate()
        kept.pop().shutdown()


@task
def has_event_loop() -> None:
    """Start a loop that stays, as fsspec and zarr do."""
    kept.append(asyncio.new_event_loop())
    threading.Thread(target=kept[0].run_forever, daemon=True).start()
    started.set()
    deaf()


@pytest.mark.usefixtures("inherited")
def test_an_event_loop_in_a_thread_is_left_to_the_next_job(worker: Worker) -> None:
    stopped(worker, "has_event_loop")
    loop = kept.pop()
    waiting = asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01, "slept"), loop)
    assert waiting.result(SECONDS) == "slept"
    loop.call_soon_threadsafe(loop.stop)


@pytest.mark.usefixtures("inherited")
def test_a_job_ends_when_its_thread_in_c_code_has(worker: Worker) -> None:
    run = worker.run(None, ["held"], task=leaves.name)

    async def stop() -> float:
        canceller = RunCanceller(worker.context.runs, worker.context.refused, grace=0.2)
        canceller.cancel([run.control.key])
        return time.monotonic()

    future = worker.begin(run)
    assert started.wait(SECONDS)
    begun = time.monotonic()
    asyncio.run_coroutine_threadsafe(stop(), worker._loop).result(SECONDS)
    assert isinstance(future.exception(SECONDS), JobCanceled)
    assert time.monotonic() - begun > 3
    until(lambda: worker.statuses() == [S.RUNNING, S.CANCELED])
    assert "The job is to end, but its thread Thread-" in worker.log()
    assert "(held) cannot be interrupted: it waits in C code" in worker.log()
    assert did == [], "it was interrupted when it came back"
    assert "Traceback" not in worker.log()


@pytest.mark.usefixtures("inherited")
def test_the_threads_of_a_task_that_takes_too_long_end_with_it(worker: Worker) -> None:
    error = worker.outcome(None, ["careless", "loop"], task=leaves.name, timeout=0.5)
    assert isinstance(error, JobTimeout)
    assert worker.statuses() == [S.RUNNING, S.ERROR]
    assert len(loops) == 2
    assert none_counts()


@pytest.mark.usefixtures("inherited")
def test_threads_go_on_after_the_end_of_a_task(worker: Worker) -> None:
    run = worker.run(None, ["loop"], task=starts.name)
    assert worker.begin(run).result(SECONDS) is None
    until(lambda: worker.statuses() == [S.RUNNING, S.SUCCESS])
    run.control.cancel()
    run.control.interrupt()
    assert not none_counts()
    go_on.set()


@pytest.mark.usefixtures("inherited")
def test_a_pool_of_two_jobs_works_on_for_the_other(worker: Worker) -> None:
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        shared.append(pool)
        try:
            runs = [worker.run(None, n, task=shares.name, job_id=n) for n in "ab"]
            futures = [worker.begin(run) for run in runs]
            until(lambda: len(loops) == 2)
            runs[0].control.cancel()
            runs[0].control.interrupt()
            assert isinstance(futures[0].exception(SECONDS), JobCanceled)
            a, b = loops["a"], loops["b"]
            until(lambda: loops["b"] > b)
            assert loops["a"] == a
            go_on.set()
            assert futures[1].result(SECONDS) == "done"
        finally:
            go_on.set()
            shared.clear()


shared: list[concurrent.futures.ThreadPoolExecutor] = []


@task
def shares(name: str) -> str:
    shared[0].submit(loop, name).result()
    return "done"


@pytest.mark.usefixtures("inherited")
def test_nothing_is_left_of_the_threads_of_a_job(worker: Worker) -> None:
    from girder_dask.worker.interruption import job_threads

    gc.collect()
    before = len(job_threads._threads)
    for n in range(5):
        worker.outcome(None, task=counts_to_two.name, job_id=str(n))

    def is_empty() -> bool:
        gc.collect()
        return len(job_threads._threads) <= before + 1

    until(is_empty)


@task
def counts_to_two() -> None:
    thread = threading.Thread(target=did.append, args=(1,))
    thread.start()
    thread.join()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(did.append, 2).result()


# -- what is kept of an exception ----------------------------------------------------------


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
