"""``@task``, and what ``delay()`` makes of a call."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pickle
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from click.testing import CliRunner
from girder_worker_utils.transforms.girder_io import GirderUploadToItem as WorkerUpload

from girder_dask import NotConnectedError, Task, app, current_job, girder_job, task
from girder_dask.cli import main
from girder_dask.entrypoint import discover, get_module_tasks
from girder_dask.errors import (
    ArgumentError,
    PayloadTooLargeError,
    SubmissionError,
    TaskNotFoundError,
)
from girder_dask.jobs import HANDLER
from girder_dask.protocol.payload import open_call
from girder_dask.tasks.discovery import distributions_by_package, package_of
from girder_dask.tasks.running_job import RunningJob, current
from girder_dask.tasks.task import find_task
from girder_dask.transforms import GirderFileId, GirderItemMetadata, GirderUploadToFolder
from tests.support.recording_backend import RecordingBackend


@task
def add(a: int, b: int = 2, *, scale: float = 1.0) -> float:
    """Add two numbers."""
    return (a + b) * scale


@task(
    title="Count coins",
    type="segmentation",
    public=True,
    other_fields={"study": 7},
    retries=2,
    timeout=60,
    resources={"GPU": 1},
    priority=3,
)
def count(path: str) -> int:
    return len(path)


@task(bind=True)
def bound(self: RunningJob, n: int) -> tuple[str | None, int]:
    return self.id, n


class Tasks:
    @staticmethod
    @task
    def inner() -> str:
        return "inner"


@task
def takes_anything(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return args, kwargs


# -- the function --------------------------------------------------------------------------


def test_a_task_is_still_the_function() -> None:
    assert add(1) == 3
    assert add(1, b=3, scale=2) == 8
    assert add.function(1, 1) == 2
    assert isinstance(add, Task)
    assert repr(add) == "<Task tests.unit.tasks.test_task:add>"


def test_it_keeps_what_the_function_says_of_itself() -> None:
    assert (add.__name__, add.__doc__, add.__module__) == (
        "add",
        "Add two numbers.",
        "tests.unit.tasks.test_task",
    )
    assert inspect.signature(add) == inspect.signature(add.function)
    assert add.__annotations__ == add.function.__annotations__


def test_a_bound_task_gets_the_running_job_without_being_given_it() -> None:
    assert list(inspect.signature(bound).parameters) == ["n"]
    assert bound(4) == (None, 4)
    token = current.set(RunningJob(id="a"))
    try:
        assert bound(4) == ("a", 4)
        assert current_job().id == "a"
    finally:
        current.reset(token)


def test_the_class_of_tasks_can_be_looked_at() -> None:
    """Documentation tools ask classes for their signature."""
    assert list(inspect.signature(Task).parameters) == ["function", "settings"]


def test_the_decorator_refuses_settings_that_do_not_exist() -> None:
    with pytest.raises(TypeError, match="colour"):
        task(colour="blue")  # type: ignore[call-overload]


def test_settings_of_the_decorator_are_recorded() -> None:
    assert count.settings.title == "Count coins"
    assert count.settings.resources == {"GPU": 1}
    assert add.settings.other_fields == {}
    assert task(other_fields=None)(lambda: None).settings.other_fields == {}


def test_a_task_travels_by_its_name() -> None:
    for each in (add, count, bound, Tasks.inner):
        assert pickle.loads(pickle.dumps(each)) is each
        assert find_task(each.name) is each
    assert b"Add two numbers" not in pickle.dumps(add)
    assert len(pickle.dumps(add)) < 100


@pytest.mark.parametrize(
    "name",
    [
        f"{__name__}:no_such",
        f"{__name__}:Tasks.no_such",
        f"{__name__}:Path",
    ],
)
def test_a_name_that_is_no_task_is_an_error(name: str) -> None:
    with pytest.raises(TaskNotFoundError, match=name.partition(":")[2]):
        find_task(name)


def test_a_module_that_is_missing_is_named_by_python() -> None:
    with pytest.raises(ModuleNotFoundError) as caught:
        find_task("no_such_package.tasks:f")
    assert caught.value.name == "no_such_package"


# -- delay ---------------------------------------------------------------------------------


def test_without_a_girder_nothing_is_recorded_and_the_error_says_what_to_do() -> None:
    with pytest.raises(NotConnectedError, match="call it directly"):
        add.delay(1)


def test_a_call_becomes_a_submission(backend: RecordingBackend) -> None:
    job = add.delay(1, scale=3)
    assert (job.id, job["title"]) == ("job1", "add")
    assert backend.loads == 0, "the document is there already"
    (made,) = backend.submissions
    assert (made.task, made.title, made.type) == (f"{__name__}:add", "add", "dask")
    assert made.public is False
    assert (made.args, made.kwargs, made.handler) == ([1], {"scale": 3}, HANDLER)
    assert (made.user, made.token, made.api_url, made.isolation) == (None, None, None, None)
    call = open_call(made.payload)
    assert (call.args, call.kwargs, call.hooks, call.function) == ((1,), {"scale": 3}, (), None)


def test_the_fields_of_the_decorator_are_those_of_the_job(backend: RecordingBackend) -> None:
    count.delay("coins.png")
    (made,) = backend.submissions
    assert (made.title, made.type, made.public) == ("Count coins", "segmentation", True)
    assert made.other_fields == {"study": 7}
    assert (made.retries, made.timeout, made.resources) == (2, 60, {"GPU": 1})
    assert (made.priority, made.isolation) == (3, None)


def test_the_call_overrides_the_fields_and_the_function_does_not_see_it(
    backend: RecordingBackend,
) -> None:
    user, hook = {"_id": "u1"}, GirderItemMetadata("6f")
    count.delay(
        "coins.png",
        girder_job_title="Coins of May",
        girder_job_type="counting",
        girder_job_public=False,
        girder_job_handler="other_handler",
        girder_job_other_fields={"study": 8},
        girder_user=user,
        girder_client_token="SECRET",
        girder_api_url="http://girder/api/v1",
        girder_result_hooks=[hook],
    )
    (made,) = backend.submissions
    assert (made.title, made.type, made.public) == ("Coins of May", "counting", False)
    assert (made.handler, made.other_fields, made.user) == ("other_handler", {"study": 8}, user)
    assert (made.token, made.api_url) == ("SECRET", "http://girder/api/v1")
    assert (made.args, made.kwargs) == (["coins.png"], {})
    assert "SECRET" not in repr(made)
    assert b"SECRET" not in made.payload
    call = open_call(made.payload)
    assert call.kwargs == {}
    assert call.hooks[0].item_id == "6f"


def test_apply_async_takes_the_arguments_apart_and_the_placement(backend: RecordingBackend) -> None:
    count.apply_async(["a"], {"girder_job_title": "One"}, retries=0, priority=9, timeout=None)
    count.apply_async(kwargs={"path": "b"}, girder_job_title="Two")
    one, two = backend.submissions
    assert (one.title, one.retries, one.priority, one.timeout) == ("One", 0, 9, None)
    assert one.resources == {"GPU": 1}
    assert (two.title, two.args, two.kwargs) == ("Two", [], {"path": "b"})


def test_the_mapping_of_the_caller_stays_as_it_is(backend: RecordingBackend) -> None:
    kwargs = {"path": "a", "girder_job_title": "One"}
    count.apply_async(kwargs=kwargs)
    assert kwargs == {"path": "a", "girder_job_title": "One"}


def test_transforms_are_shown_by_what_they_stand_for(backend: RecordingBackend) -> None:
    takes_anything.delay([GirderFileId("5f", gc=object())], file=GirderFileId("6f"))
    (made,) = backend.submissions
    assert made.args == [["GirderFileId('5f')"]]
    assert made.kwargs == {"file": "GirderFileId('6f')"}
    assert open_call(made.payload).args[0][0].gc is None


@pytest.mark.parametrize(
    ("started", "args", "kwargs", "reason"),
    [
        (add, (), {}, "missing a required argument: 'a'"),
        (add, (1, 2, 3), {}, "too many positional arguments"),
        (add, (1,), {"colour": 1}, "unexpected keyword argument 'colour'"),
        (bound, (), {}, "missing a required argument: 'n'"),
        (bound, (1, 2), {}, "too many positional arguments"),
    ],
)
def test_arguments_that_do_not_fit_make_no_job(
    backend: RecordingBackend, started: Any, args: Any, kwargs: Any, reason: str
) -> None:
    with pytest.raises(SubmissionError, match=reason) as caught:
        started.delay(*args, **kwargs)
    assert str(inspect.signature(started)) in str(caught.value)
    assert caught.value.task == started.name
    assert not backend.submissions


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("a camera")


def test_an_argument_that_cannot_be_pickled_makes_no_job(backend: RecordingBackend) -> None:
    with pytest.raises(ArgumentError, match=r"'scale' of tests.unit.tasks.test_task:add.*a camera"):
        add.delay(1, scale=Unpicklable())
    assert not backend.submissions


def test_a_call_that_is_too_large_makes_no_job(backend: RecordingBackend) -> None:
    with (
        dask.config.set({"girder.max-payload": "1 kiB"}),
        pytest.raises(PayloadTooLargeError, match=r"more than the 1,024 .*girder\.max-payload"),
    ):
        count.delay("x" * 1024)
    assert not backend.submissions
    count.delay("x" * 1024)
    assert len(backend.submissions) == 1


@pytest.mark.parametrize("option", ["girder_job_titel", "queue", "title"])
def test_an_option_that_does_not_exist_makes_no_job(backend: RecordingBackend, option: str) -> None:
    with pytest.raises(SubmissionError, match=f"options that do not exist: {option}"):
        count.apply_async(("a",), **{option: "x"})
    assert not backend.submissions


@task(isolation="process")
def in_a_process() -> None: ...


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"retries": "x"}, "retries='x': Expected `int`, got `str`"),
        ({"retries": True}, "retries=True: Expected `int`, got `bool`"),
        ({"priority": 1.5}, "priority=1.5: Expected `int`, got `float`"),
        ({"timeout": -1}, "timeout=-1: Expected `float` > 0"),
        ({"resources": {"GPU": 0}}, "resources={'GPU': 0}: Expected `float` > 0"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(
    backend: RecordingBackend, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SubmissionError, match=said):
        count.options(**changes)
    with pytest.raises(SubmissionError, match=said):
        count.apply_async(("a",), **changes)
    assert not backend.submissions


def test_a_title_is_a_text(backend: RecordingBackend) -> None:
    with pytest.raises(SubmissionError, match="the title 7, which is not a string"):
        count.options(title=7)
    with pytest.raises(SubmissionError, match="the type 7, which is not a string"):
        count.delay("a", girder_job_type=7)
    assert not backend.submissions


def test_hooks_may_be_nested_as_the_result_is(backend: RecordingBackend) -> None:
    hook = GirderItemMetadata("5f")
    for hooks, packed in (
        ([[hook], (hook, None)], "([GirderItemMetadata('5f')], (GirderItemMetadata('5f'), None))"),
        ({"a": hook}, "({'a': GirderItemMetadata('5f')},)"),
        (None, "()"),
    ):
        count.delay("a", girder_result_hooks=hooks)
        assert repr(open_call(backend.submissions[-1].payload).hooks) == packed


def test_a_client_in_a_nested_hook_does_not_travel(backend: RecordingBackend) -> None:
    hook = WorkerUpload("5f", gc=Unpicklable())
    count.delay("a", girder_result_hooks=[[hook]])
    assert len(backend.submissions) == 1


@pytest.mark.parametrize(
    ("hooks", "said"),
    [
        (GirderItemMetadata("5f"), "Give a list of hooks"),
        (7, "Give a list of hooks"),
        (["5f"], "'5f' among its girder_result_hooks, which is not a hook"),
        ([[{"a": GirderItemMetadata}]], "among its girder_result_hooks, which is not a hook"),
    ],
)
def test_what_is_no_hook_makes_no_job(backend: RecordingBackend, hooks: Any, said: str) -> None:
    with pytest.raises(SubmissionError, match=said):
        count.delay("a", girder_result_hooks=hooks)
    assert not backend.submissions


@pytest.mark.parametrize("started", [in_a_process, count])
def test_the_isolation_of_a_call(backend: RecordingBackend, started: Any) -> None:
    args = ("a",) if started is count else ()
    started.apply_async(args, isolation="process")
    with pytest.raises(SubmissionError, match=r"isolation='prison': .*`thread` or `process`"):
        started.apply_async(args, isolation="prison")
    assert [s.isolation for s in backend.submissions] == ["process"]


# -- what is no function that workers find ---------------------------------------------------


class Counter:
    def count(self) -> int:
        return 1

    def __call__(self) -> int:
        return 1


def _yields() -> Iterator[int]:
    yield 1


async def _yields_async() -> AsyncIterator[int]:
    yield 1


UNFIT = {
    "a functools.partial": (functools.partial(len, "a"), "is a functools.partial, .*@task"),
    "a bound method": (Counter().count, "Counter.count is a bound method"),
    "a callable object": (Counter(), "is an object of Counter"),
    "a class": (Counter, "Counter is a class"),
    "a staticmethod": (staticmethod(lambda: 1), "Put @staticmethod first"),
    "a classmethod": (classmethod(lambda _: 1), "Put @classmethod first"),
    "a function of Python": (len, "plain function len of the module builtins"),
    "one of a C library": (math.hypot, "hypot"),
    "another module's": (statistics.mean, "plain function mean .*def my_mean"),
    "a generator function": (_yields, "is a generator function.* return it"),
    "an asynchronous one": (_yields_async, "is a generator function.* return it"),
    "no function at all": (5, "5, which is not callable"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_what_cannot_be_a_task_is_refused_with_what_to_do(kind: str) -> None:
    unfit, said = UNFIT[kind]
    for decorate in (task, task(title="T"), app.task, app.task(bind=True)):
        with pytest.raises(TypeError, match=f"(?s){said}"):
            decorate(unfit)


@task
@functools.cache
def cached(n: int) -> int:
    return n


@task
@functools.wraps(_yields)
def _collects() -> list[int]:
    return list(_yields())


def test_decorated_functions_are_tasks() -> None:
    assert cached(2) == 2
    assert cached.name.endswith(f"{__name__}:cached")
    assert _collects() == [1]
    assert task(lambda: 1)() == 1


plain = add.function
renamed = Task(plain, add.settings)


def _helper() -> int:
    return 1


misnamed = Task(_helper, add.settings)


def test_one_that_is_not_where_its_function_is_travels_by_value(backend: RecordingBackend) -> None:
    assert misnamed._travels_by_value
    assert not renamed._travels_by_value, "there is a task at that place"
    with pytest.raises(SubmissionError, match=r"cannot find .* by name. Define it with @task"):
        misnamed.delay()
    backend.ships_code = True
    misnamed.delay()
    function = open_call(backend.submissions[-1].payload).function
    assert function is not None
    assert function() == 1


# -- packages ------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A distribution on the path, as pip would have installed it."""
    (tmp_path / "mint_tasks").mkdir()
    (tmp_path / "mint_tasks" / "__init__.py").write_text(
        "from girder_dask import task\n"
        "@task\ndef weigh(): return 5\n"
        "@task\ndef cast(): return 6\n"
        "weigh_again = weigh\n"
        "def no_task(): ...\n"
    )
    (tmp_path / "mint_tasks" / "more.py").write_text("")
    info = tmp_path / "mint_tools-2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mint-tools\nVersion: 2.5\n")
    (info / "entry_points.txt").write_text("[girder_dask.tasks]\nmint = mint_tasks\n")
    (info / "RECORD").write_text("mint_tasks/__init__.py,,\nmint_tasks/more.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    package_of.cache_clear()
    distributions_by_package.cache_clear()
    yield tmp_path
    package_of.cache_clear()
    distributions_by_package.cache_clear()
    for name in [n for n in sys.modules if n.partition(".")[0] == "mint_tasks"]:
        del sys.modules[name]


@pytest.mark.usefixtures("installed")
def test_tasks_of_installed_packages_are_found() -> None:
    found = discover()
    assert [name for name in found if name.startswith("mint_tasks:")] == [
        "mint_tasks:cast",
        "mint_tasks:weigh",
    ]
    assert list(found) == sorted(found)
    assert found["mint_tasks:weigh"]() == 5
    assert found["mint_tasks:weigh"] is importlib.import_module("mint_tasks").weigh


def test_a_package_that_cannot_be_imported_is_an_error(installed: Path) -> None:
    (installed / "mint_tasks" / "__init__.py").write_text("import no_such_module\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        discover()


class Aloof:
    """Stands for an object that is there at other times, as the request of a web server."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("working outside of a request")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("working outside of a request")


def test_an_object_of_a_module_that_does_not_answer_is_left_out(installed: Path) -> None:
    module = importlib.import_module("mint_tasks")
    vars(module)["aloof"] = Aloof()
    assert "mint_tasks:cast" in discover()
    assert "mint_tasks.cast" in get_module_tasks("mint_tasks")


@pytest.mark.parametrize("fault", ["import no_such_module", "import sys; sys.exit(3)", "x ="])
def test_a_module_that_cannot_be_imported_does_not_end_the_list(
    installed: Path, fault: str
) -> None:
    (installed / "mint_tasks" / "__init__.py").write_text(fault)
    shown = CliRunner().invoke(main, ["tasks"])
    assert shown.exit_code == 1
    assert "my_worker_tasks:my_task\n" in shown.stdout
    assert "The tasks of mint_tasks cannot be imported: " in shown.stderr


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("module", ["mint_tasks", "mint_tasks.more"])
def test_the_package_of_a_module_is_known_with_its_version(module: str) -> None:
    assert package_of(module) == "mint-tools 2.5"


def test_a_module_of_no_package_has_none() -> None:
    assert package_of(__name__) is None


def test_the_tasks_of_a_really_installed_package_are_found() -> None:
    code = """
from girder_dask.tasks.discovery import distributions_by_package, package_of
from girder_dask.entrypoint import discover
print(*discover(), package_of("my_worker_tasks"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "my_worker_tasks:my_task" in done.stdout.split()
    assert "my_worker_tasks 1.0.0" in done.stdout.replace("-", "_")


# -- code that was written for girder_worker -----------------------------------------------


@girder_job(title="Old", type="celery", handler="worker_handler", otherFields={"a": 1})
@app.task(bind=True, autoretry_for=(OSError,), max_retries=3, acks_late=True)
def old(self: RunningJob, n: int) -> int:
    """Double a number."""
    return 2 * n


@girder_job()
@app.task(max_retries=5)
def older(n: int) -> int:
    return n


def test_both_decorators_of_girder_worker_make_a_task(backend: RecordingBackend) -> None:
    assert old(4) == 8
    assert older(4) == 4
    assert (old.name, old.__doc__) == (f"{__name__}:old", "Double a number.")
    assert list(inspect.signature(old).parameters) == ["n"]
    old.delay(1)
    older.delay(1)
    made, plain = backend.submissions
    assert (made.title, made.type, made.handler) == ("Old", "celery", HANDLER)
    assert (made.other_fields, made.public, made.retries) == ({"a": 1}, False, 3)
    assert (plain.title, plain.type, plain.retries) == ("older", "dask", 0)


def test_a_handler_of_ones_own_is_kept() -> None:
    assert girder_job(handler="mine")(app.task(lambda: 1)).settings.handler == "mine"
    assert girder_job(handler="celery_handler")(app.task(lambda: 1)).settings.handler == HANDLER


def test_a_ported_task_travels_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(old)) is old


def test_an_input_among_the_hooks_is_refused(backend: RecordingBackend) -> None:
    with pytest.raises(
        SubmissionError, match=r"GirderFileId.*which is an input.*No job was created"
    ):
        add.delay(1, 2, girder_result_hooks=[GirderFileId("5f")])
    assert backend.submissions == []


def test_the_class_of_an_input_is_no_input(backend: RecordingBackend) -> None:
    with pytest.raises(SubmissionError, match=r"the class GirderFileId.*GirderFileId\(…\)"):
        add.delay(1, [GirderFileId])
    assert backend.submissions == []
    assert add.delay(1, int) is not None


def test_a_hook_among_the_arguments_is_refused(backend: RecordingBackend) -> None:
    with pytest.raises(SubmissionError, match=r"GirderUploadToFolder.*which is a result hook"):
        add.delay(1, [GirderUploadToFolder("5f")])
    assert backend.submissions == []
