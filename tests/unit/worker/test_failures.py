"""What the owner of a job reads when a run went wrong."""

from __future__ import annotations

import bdb
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import girder_dask
from girder_dask.errors import TransformError
from girder_dask.protocol.error_text import summary
from girder_dask.protocol.messages import JobSpec
from girder_dask.tasks.decorator import task
from girder_dask.tasks.task import Task
from girder_dask.worker.failures import describe_error, describe_missing_import
from girder_dask.worker.location import WorkerLocation

PLACE = WorkerLocation("tcp://10.0.0.7:4312", "node7")
SPEC = JobSpec(id="a", attempt=1, task="my_tasks.coins:count", package="my-tasks 1.2")


def caught(function: Callable[[], object]) -> BaseException:
    """Return what a function raises, with the traceback that its caller on a worker would see."""
    try:
        function()
    except BaseException as e:  # noqa: BLE001 - SystemExit too
        return e.with_traceback(e.__traceback__ and e.__traceback__.tb_next)
    raise AssertionError("it did not raise")


def of_user(source: str, filename: str = "/site/coins.py") -> Task[[], None]:
    """Return a task whose code is in a file of that name."""
    names: dict[str, object] = {"__name__": "coins"}
    exec(compile(source, filename, "exec"), names)  # noqa: S102 - it is written here
    return task(names["work"])  # type: ignore[call-overload, no-any-return]


def test_the_traceback_begins_with_the_code_of_the_user() -> None:
    text = describe_error(caught(of_user("def work():\n  deeper()\ndef deeper():\n  1 / 0\n")))
    assert text.splitlines()[-1] == "ZeroDivisionError: division by zero"
    ours = str(Path(girder_dask.__file__).parent / "task.py")
    assert ours not in text
    assert '"/site/coins.py", line 2, in work' in text
    assert '"/site/coins.py", line 4, in deeper' in text


def test_a_package_whose_name_begins_like_ours_is_the_users() -> None:
    beside = f"{Path(girder_dask.__file__).parent}_coins/coins.py"
    assert beside in describe_error(caught(of_user("def work():\n  1 / 0\n", beside)))


def test_our_frames_within_the_users_code_stay() -> None:
    source = """
from girder_dask.utils.pytree import tree_map
def work():
    tree_map(lambda v: 1 / v, [0])
"""
    text = describe_error(caught(of_user(source)))
    assert "pytree.py" in text


def test_causes_are_told() -> None:
    source = """
def work():
    try:
        {}["coins"]
    except KeyError as e:
        raise ValueError("no coins") from e
"""
    text = describe_error(caught(of_user(source)))
    assert text.index("KeyError: 'coins'") < text.index("direct cause") < text.index("ValueError")


def test_an_error_without_a_frame_of_the_user_is_one_line() -> None:
    assert describe_error(ValueError("no coins")) == "ValueError: no coins\n"


def test_an_error_of_a_transform_is_told_without_a_traceback() -> None:
    def fetch() -> None:
        raise TransformError("GirderFileId('5f'): there is no such file.")

    assert describe_error(caught(fetch)) == "GirderFileId('5f'): there is no such file.\n"


@pytest.mark.parametrize(
    ("call", "shown"),
    [("sys.exit()", "sys.exit()"), ("sys.exit(3)", "sys.exit(3)"), ("sys.exit('no')", "('no')")],
)
def test_an_exit_says_where_it_was_called_and_what_to_do(call: str, shown: str) -> None:
    text = describe_error(caught(of_user(f"import sys\ndef work():\n  {call}\n")))
    assert shown in text
    assert "/site/coins.py, line 3" in text
    assert "return from the function" in text
    assert describe_error(SystemExit(3)).startswith("The task called sys.exit(3). That")


def test_an_exit_before_the_task_began_is_not_the_task_s() -> None:
    error = caught(of_user("import sys\ndef work():\n  sys.exit(3)\n"))
    text = describe_error(error, started=False)
    assert "sys.exit(3) was called in /site/coins.py, line 3 before the task began" in text
    assert "The task called" not in text


def test_multiprocessing_in_a_worker_hints_at_a_process() -> None:
    error = AssertionError("daemonic processes are not allowed to have children")
    assert "isolation='process'" in describe_error(error)
    assert "isolation" not in describe_error(AssertionError("other"))


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ValueError("signal only works in main thread of the main interpreter"), "isolation="),
        (RuntimeError("There is no current event loop in thread 'x'."), "asyncio.run()"),
        (EOFError("EOF when reading a line"), "no standard input"),
        (bdb.BdbQuit(), "Remove breakpoint()"),
    ],
)
def test_what_cannot_be_done_where_a_task_runs_is_explained(error: Exception, advice: str) -> None:
    assert advice in describe_error(error).splitlines()[-1]
    assert advice not in describe_error(type(error)("something else")) or isinstance(
        error, bdb.BdbQuit
    )


def test_a_keyboard_interrupt_is_explained() -> None:
    text = describe_error(caught(of_user("def work():\n  raise KeyboardInterrupt\n")))
    assert '"/site/coins.py", line 2' in text
    assert text.endswith("The task raised KeyboardInterrupt, which ends it as an error.\n")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no coins"), "ValueError: no coins"),
        (ValueError(), "ValueError"),
        (ValueError("two\nlines"), None),
        (SyntaxError("bad", ("f.py", 3, 1, "x =", 3, 4)), None),
    ],
)
def test_a_summary_is_one_line(error: Exception, line: str | None) -> None:
    assert "\n" not in summary(error)
    if line is not None:
        assert summary(error) == line


class Speechless(BaseException):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_an_error_that_cannot_be_shown_is_told_nevertheless() -> None:
    assert "Speechless" in summary(Speechless())
    assert "Speechless" in describe_error(Speechless())


def test_a_note_does_not_take_the_place_of_the_error() -> None:
    if sys.version_info < (3, 11):
        return
    error = ValueError("no coins")
    error.add_note("seen on a Tuesday")
    assert summary(error) == "ValueError: no coins"
    assert "seen on a Tuesday" in describe_error(error)


def test_a_missing_package_is_named_with_its_version_and_place() -> None:
    error = ModuleNotFoundError("No module named 'my_tasks'", name="my_tasks")
    text = describe_missing_import(SPEC, error, PLACE)
    assert "my_tasks.coins:count cannot run on worker tcp://10.0.0.7:4312 on node7" in text
    assert "The package my-tasks is not installed there." in text
    assert text.endswith("    pip install 'my-tasks==1.2'\n")
    assert "Traceback" not in text


def test_without_a_known_package_the_module_is_named() -> None:
    error = ModuleNotFoundError("No module named 'my_tasks'", name="my_tasks")
    spec = JobSpec(id="a", attempt=1, task="my_tasks:count")
    assert describe_missing_import(spec, error, PLACE).endswith("    pip install 'my_tasks'\n")


def test_what_a_task_imports_is_named_too() -> None:
    def import_it() -> None:
        import no_such_module_anywhere.part  # noqa: F401

    text = describe_missing_import(SPEC, caught(import_it), PLACE)  # type: ignore[arg-type]
    assert "No module named 'no_such_module_anywhere'" in text
    assert "The package my-tasks is not" not in text
    assert "pip install 'no_such_module_anywhere'" in text
    assert "Traceback" in text, "it shows who imports it"


def test_an_import_error_without_a_name_shows_its_traceback() -> None:
    text = describe_missing_import(SPEC, ImportError("libGL.so.1: cannot open"), PLACE)
    assert "libGL.so.1" in text
    assert "my_tasks.coins:count cannot run on worker" in text
    assert "raises this error when it is imported" in text
    assert "pip install" not in text


def test_a_name_that_a_module_lacks_is_no_missing_package() -> None:
    error = ImportError("cannot import name 'x' from 'my_tasks'", name="my_tasks")
    text = describe_missing_import(SPEC, error, PLACE)
    assert "raises this error when it is imported" in text
    assert "(my-tasks 1.2)" in text
    assert "pip install" not in text


def test_a_part_of_an_installed_package_that_is_missing_is_not_the_package() -> None:
    """The worker has another version of it; saying that it is not installed misleads."""
    error = ModuleNotFoundError("No module named 'my_tasks.coins'", name="my_tasks.coins")
    text = describe_missing_import(SPEC, error, PLACE)
    assert "The package my-tasks is not installed" not in text
    assert "my_tasks.coins" in text
    assert "pip install 'my-tasks==1.2'" in text
