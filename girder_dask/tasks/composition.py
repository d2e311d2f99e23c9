"""Composition of calls before they are started: ``s()``, chain, group and chord.

The names are Celery's, for ported code. New code passes a ``JobResult`` to another ``delay()``,
which does the same: ``second.delay(first.delay(1))``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from girder_dask.client.result import JobResult

__all__ = ["Chain", "Group", "GroupResult", "Signature", "chain", "chord", "group"]


class _Startable(Protocol):
    """A call or composition that starts jobs, given the results before it."""

    def apply_async(self, args: Sequence[Any] = ...) -> Any: ...


class _Composable:
    """Base of signatures, chains and groups."""

    def apply_async(self, args: Sequence[Any] = ()) -> Any:
        """Start it, with ``args`` before its own arguments."""
        raise NotImplementedError

    def delay(self, *args: Any) -> Any:
        """Start it, with ``args`` before its own arguments."""
        return self.apply_async(args)

    def __call__(self, *args: Any) -> Any:
        return self.apply_async(args)

    def __or__(self, other: _Composable) -> Chain:
        return Chain([*_links(self), *_links(other)])


class Signature(_Composable):
    """A call of a task that is not started yet, created by ``task.s(…)``.

    Parameters
    ----------
    task
        The task.
    args, kwargs
        Its arguments. The keyword arguments may contain options of ``delay()``.
    immutable
        Whether it ignores the results before it.
    """

    def __init__(
        self,
        task: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
    ) -> None:
        self.task = task
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})
        self.immutable = immutable

    def __repr__(self) -> str:
        shown = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return f"{self.task.name}({', '.join(shown)})"

    def __call__(self, *args: Any) -> Any:
        """Call the function in this process, as Celery's signatures do."""
        return self.task(*self._with(args), **self.kwargs)

    def _with(self, args: Sequence[Any]) -> tuple[Any, ...]:
        return self.args if self.immutable else (*args, *self.args)

    def set(self, **options: Any) -> Signature:
        """Return the same call with more options, such as ``girder_job_title``."""
        more = {**self.kwargs, **{k: v for k, v in options.items() if k.startswith("girder_")}}
        placement = {k: v for k, v in options.items() if k not in more}
        task = self.task.options(**placement) if placement else self.task
        return Signature(task, self.args, more, immutable=self.immutable)

    def apply_async(self, args: Sequence[Any] = ()) -> Any:
        """Start the job, and return its JobResult."""
        return self.task.apply_async(self._with(args), self.kwargs)


class Chain(_Composable):
    """Calls, each of which gets the value of the one before as its first argument."""

    def __init__(self, links: Iterable[_Startable]) -> None:
        self.links = list(links)
        if not self.links:
            raise ValueError("A chain needs at least one call.")

    def __repr__(self) -> str:
        return " | ".join(repr(link) for link in self.links)

    def apply_async(self, args: Sequence[Any] = ()) -> Any:
        """Start all jobs, and return the last JobResult. Its ``parent`` is the one before."""
        before: Any = None
        for link in self.links:
            result = link.apply_async(args)
            if isinstance(result, JobResult):
                result.parent = before
            before, args = result, (result,)
        return before


class Group(_Composable):
    """Calls that run in parallel."""

    def __init__(self, members: Iterable[_Startable]) -> None:
        self.members = list(members)

    def __repr__(self) -> str:
        return f"group({', '.join(repr(member) for member in self.members)})"

    def apply_async(self, args: Sequence[Any] = ()) -> GroupResult:
        """Start all jobs, and return their JobResults."""
        return GroupResult(member.apply_async(args) for member in self.members)


class GroupResult:
    """The JobResults of a group, in order.

    As an argument of another ``delay()``, it stands for the list of their values.
    """

    def __init__(self, results: Iterable[Any]) -> None:
        self.results = tuple(results)

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __getitem__(self, index: int) -> Any:
        return self.results[index]

    def __repr__(self) -> str:
        return f"<GroupResult of {len(self.results)} jobs>"

    def completed_count(self) -> int:
        """Return how many jobs ended in SUCCESS."""
        return sum(result.successful() for result in self.results)

    def ready(self) -> bool:
        """Return True if all jobs have ended."""
        return all(result.ready() for result in self.results)

    def successful(self) -> bool:
        """Return True if all jobs have ended in SUCCESS."""
        return all(result.successful() for result in self.results)

    def failed(self) -> bool:
        """Return True if one of the jobs has ended in ERROR."""
        return any(result.failed() for result in self.results)

    def wait(self, timeout: float | None = None) -> GroupResult:
        """Wait for all jobs. Raises TimeoutError after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for result in self.results:
            result.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return self

    def get(self, timeout: float | None = None) -> list[Any]:
        """Wait for all jobs, and return their values in order, or raise the first exception."""
        self.wait(timeout)
        return [result.get() for result in self.results]

    def cancel(self) -> None:
        """Cancel all jobs."""
        with contextlib.ExitStack() as stack:  # all of them, even if one cannot be canceled
            for result in reversed(self.results):
                stack.callback(result.cancel)

    def revoke(self, **_options: Any) -> None:
        """Do what :meth:`cancel` does."""
        self.cancel()


def chain(*links: Any) -> Chain:
    """Return calls, each of which gets the value of the one before as its first argument.

    Examples
    --------
    >>> from girder_dask import chain, task
    >>> @task
    ... def add(a, b):
    ...     return a + b
    >>> first, second = chain(add.s(1, 2), add.s(3)).links
    >>> first(), second.args
    (3, (3,))
    """
    links = tuple(links[0]) if len(links) == 1 and not isinstance(links[0], _Composable) else links
    return Chain(link for given in links for link in _links(given))


def group(*members: Any) -> Group:
    """Return calls that run in parallel, given one by one or as an iterable."""
    return Group(
        members[0] if len(members) == 1 and not isinstance(members[0], _Composable) else members
    )


def chord(header: Any, body: Signature | None = None) -> Any:
    """Return a group whose list of values is passed to ``body``.

    As in Celery, ``chord(header)(body)`` starts it, and ``chord(header, body)`` returns a chain.
    """
    calls = header if isinstance(header, Group) else group(header)
    if body is not None:
        return calls | body
    return lambda then: (calls | then).apply_async()


def _links(value: Any) -> list[Any]:
    return value.links if isinstance(value, Chain) else [value]
