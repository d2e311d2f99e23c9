"""The inputs and result hooks of a run, and what cleans up after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from girder_dask.errors import (
    JobCanceled,
    TransformError,
)
from girder_dask.jobs import JobStatus
from girder_dask.protocol.payload import open_value
from tests.support.deadline import SECONDS, until
from tests.support.noting_transforms import Input, Output, did, do
from tests.support.run_worker import Worker

S = JobStatus


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
    lines = [line for line in worker.log().splitlines() if "was not called" in line]
    assert lines == [
        f"girder_dask: Sink('{name}') was not called: it is the result hook for value {n}, and "
        "the task returned 2."
        for name, n in (("c", 3), ("d", 4))
    ]
