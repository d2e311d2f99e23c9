"""Decorator that turns a function into a task: ``@task``.

It only records its arguments: importing a module of tasks opens no connection. Everything else
happens in ``delay()``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, Literal, ParamSpec, TypedDict, TypeVar, Unpack, overload

from girder_dask.tasks.callables import checked
from girder_dask.tasks.options import TaskSettings
from girder_dask.tasks.task import Task

__all__ = ["task"]

P = ParamSpec("P")
R = TypeVar("R")


class _Settings(TypedDict, total=False):
    """What ``@task`` takes besides ``bind``; see :class:`TaskSettings`."""

    title: str | None
    type: str
    public: bool
    other_fields: Mapping[str, Any] | None
    retries: int
    timeout: float | None
    resources: Mapping[str, float] | None
    priority: int
    isolation: str | None
    at_most_once: bool


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(
    *, bind: Literal[True], **settings: Unpack[_Settings]
) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...


@overload
def task(
    *, bind: Literal[False] = ..., **settings: Unpack[_Settings]
) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(function: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
    """Turn a function, which may be ``async``, into one that can run as a Girder job.

    Parameters
    ----------
    title
        The title of its jobs, by default the name of the function.
    type
        The type of its jobs, a filter in Girder's job list.
    public
        Whether everybody may read its jobs.
    other_fields
        Additional fields of its job documents.
    bind
        Whether the function gets the running job
        (:class:`girder_dask.tasks.running_job.RunningJob`) as its first argument.
    retries
        How often a call that raised is retried, after a pause that doubles.
    timeout
        Seconds that a call may run. After that its Python code is interrupted, and the job ends
        in ERROR. C code is interrupted only once it returns, unless the task runs in a process
        of its own.
    resources
        Dask worker resources that a call needs, such as ``{'GPU': 1}``.
    priority
        Jobs of a higher priority run earlier.
    isolation
        ``'process'``: each call has a process of its own. Output of C code is logged, memory is
        freed, and the call can be killed. ``'thread'`` and None: a thread of the worker, unless
        the worker uses processes (``girder.worker.isolation``).
    at_most_once
        Whether a call that may have begun ends in ERROR if its worker or scheduler is lost,
        instead of running again. Not together with ``retries``.

    Examples
    --------
    >>> from girder_dask import task
    >>> @task(title='Add two numbers')
    ... def add(a: int, b: int) -> int:
    ...     return a + b
    >>> add(1, 2)
    3
    """
    if function is not None:
        return Task(checked(function), TaskSettings())
    given = {k: v for k, v in settings.items() if not (k == "other_fields" and v is None)}
    return functools.partial(_decorate, settings=TaskSettings(**given))


def _decorate(function: Callable[P, R], settings: TaskSettings) -> Task[P, R]:
    return Task(checked(function), settings)
