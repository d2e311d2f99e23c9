"""A call that has come to its end: coroutines are run, and what is only promised is refused."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from girder_dask.client.result import JobResult
from girder_dask.errors import JobFailed
from girder_dask.tasks.context import current_job

__all__ = ["completed", "unfinished"]

#: What is computed only when somebody asks for its elements.
_LAZY = (GeneratorType, AsyncGeneratorType, map, filter, zip, enumerate)
#: Modules all of whose iterators are so.
_OF_ITERATORS = frozenset({"itertools"})
#: What stands for work that goes on elsewhere: where its class is defined, and how it tells that
#: it does. The value of some would be lost, so that they count when it has ended, too.
_WORK: tuple[tuple[str, str, Callable[[Any], bool], str], ...] = (
    ("concurrent.futures", "Future", lambda _: True, "Return what its result() returns."),
    ("multiprocessing.pool", "AsyncResult", lambda _: True, "Return what its get() returns."),
    ("multiprocessing.pool", "IMapIterator", lambda _: True, "Return a list of its elements."),
    (
        "threading",
        "Thread",
        lambda each: bool(each.is_alive()),
        "Call its join(), and return a value.",
    ),
    (
        "subprocess",
        "Popen",
        lambda each: each.poll() is None,
        "Call its wait(), and return a value.",
    ),
    (
        "multiprocessing.process",
        "BaseProcess",
        lambda each: bool(each.is_alive()),
        "Call its join(), and return a value.",
    ),
)
#: Of these there are many in a list, and none has to be looked at twice.
_PLAIN = frozenset({bool, int, float, complex, str, bytes, bytearray, type(None)})
_CONTAINERS = (list, tuple, set, frozenset, dict)
#: How deep it is looked into lists, tuples, sets and dicts.
_DEPTH = 4


def completed(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function, run it to its end if it is ``async``, and return its value.

    Raises
    ------
    JobFailed
        If the value is something that would still have to run.
    """
    value = function(*args, **kwargs)
    if isinstance(value, CoroutineType) and _is_async(function):
        import asyncio

        with asyncio.Runner() as runner:
            value = runner.run(value)
            _tell_canceled(asyncio.all_tasks(runner.get_loop()))
    found = unfinished(value)
    if found is None:
        return value
    _close(found)
    raise JobFailed(
        f"The task returned {_describe(found)}, which would still have to run, so it is not done. "
        f"{_advice(found)}"
    )


def _tell_canceled(tasks: Collection[Any]) -> None:
    """Say in the job's log which tasks of asyncio end undone, since the function has returned."""
    if not tasks:
        return
    names = ", ".join(sorted({_name_of_task(each) for each in tasks}))
    current_job().job_manager.write(
        f"The task returned while tasks of asyncio that it had created were not done, so they are "
        f"canceled ({len(tasks)}): {names:.500}. Await them, as with asyncio.gather(), before "
        "returning.\n"
    )


def _name_of_task(task: Any) -> str:
    coroutine = task.get_coro()
    return str(getattr(coroutine, "__qualname__", None) or task.get_name())


def _is_async(function: Callable[..., Any]) -> bool:
    """Say whether a function, or that of a task, is defined with ``async def``."""
    return inspect.iscoroutinefunction(inspect.unwrap(function))


def unfinished(value: Any, depth: int = _DEPTH) -> Any:
    """Return what in a value would still have to run, or None.

    >>> unfinished([1, {'a': (n for n in range(3))}])
    <generator object <genexpr> at ...>
    >>> unfinished({'a': [1, 2, 3]})
    """
    if type(value) in _PLAIN:
        return None
    if _would_run(value):
        return value
    if depth == 0 or not isinstance(value, _CONTAINERS):
        return None
    for each in _inner(value.values() if isinstance(value, dict) else value):
        found = unfinished(each, depth - 1)
        if found is not None:
            return found
    return None


def _inner(values: Any) -> Iterator[Any]:
    """Return those elements that are worth a look. To tell takes little for the others."""
    if set(map(type, values)) <= _PLAIN:
        return iter(())
    return (each for each in values if type(each) not in _PLAIN)


def _would_run(value: Any) -> bool:
    if isinstance(value, _LAZY):
        return True
    if isinstance(value, (type, JobResult)):
        return False
    kind = type(value)
    if hasattr(kind, "__await__") or kind.__module__ in _OF_ITERATORS:
        return True
    if _waited_for(value) is not None:
        return True
    return hasattr(kind, "__dask_graph__") and _is_collection(value)


def _waited_for(value: Any) -> str | None:
    """Return how one waits for work that goes on elsewhere, None for all that is none."""
    kind: Any = type(value)
    goes_on, advice = _work(kind)
    return advice if goes_on is not None and goes_on(value) else None


@functools.lru_cache(1024)
def _work(kind: type) -> tuple[Callable[[Any], bool] | None, str]:
    """Return what tells of an object of this type whether it goes on, and how one waits for it."""
    for module, name, goes_on, advice in _WORK:
        # Nothing is of a class whose module nobody has imported.
        known = getattr(sys.modules.get(module), name, None)
        if known is not None and issubclass(kind, known):
            return goes_on, advice
    return None, ""


def _is_collection(value: Any) -> bool:
    base = sys.modules.get("dask.base")
    try:
        return base is not None and bool(base.is_dask_collection(value))
    except Exception:  # noqa: BLE001 - what cannot say so is none
        return False


def _close(value: Any) -> None:
    """Spare the log a warning of a coroutine that nobody has awaited."""
    if isinstance(value, (CoroutineType, GeneratorType)):
        value.close()


def _describe(value: Any) -> str:
    kind = type(value)
    name = kind.__qualname__
    if kind.__module__ != "builtins":
        name = f"{kind.__module__}.{name}"
    what = getattr(value, "__qualname__", None)
    return f"a {name} ({what})" if isinstance(what, str) else f"a {name}"


def _advice(value: Any) -> str:
    advice = _waited_for(value)
    if advice is not None:
        return advice
    if isinstance(value, (GeneratorType, map, filter, zip, enumerate)) or (
        type(value).__module__ in _OF_ITERATORS
    ):
        return "Return a list of its elements."
    if isinstance(value, AsyncGeneratorType):
        return "Return a list of its elements, collected with 'async for' in an 'async def'."
    if hasattr(type(value), "__dask_graph__"):
        return "Return value.compute(), or store it and return where."
    return "Await it in an 'async def', or use asyncio.run(), and return what comes of it."
