"""A stack that tests break one after the other: what they have changed is put back in between."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from girder_dask.errors import StackError
from girder_dask.standalone.stack_part import Part
from tests.support.fault_site import FaultStack, until

__all__ = ["FaultPool", "SharedFaultStack"]

_SCHEDULER_ONLY = ("DASK_GIRDER__SCHEDULER__", "DASK_DISTRIBUTED__SCHEDULER__")
_WORKER_ONLY = ("DASK_GIRDER__WORKER__",)
_JOBS_END_S = 15.0


class SharedFaultStack(FaultStack):
    """A stack whose scheduler and workers take the options of one test after the other.

    Girder, its database and its broker run on. A scheduler or worker that has the options of the
    next test, and works, runs on as well.
    """

    def prepare(self, workers: int, threads: int, env: Mapping[str, str]) -> None:
        """Give the next test what it asks for, with empty logs and no jobs.

        It raises if Girder does not work, or if a job of an earlier test does not end.
        """
        self._end_jobs()
        self.workers, self.threads = workers, threads
        before = self._planned._env
        self._planned._env = {**before, **env}
        try:
            scheduler = self._planned.scheduler_part()
            wanted = self._planned.worker_parts(workers, threads)
        finally:
            self._planned._env = before
        storage = [p for p in self.parts if p.name != "scheduler" and not p.is_worker]
        if not all(part.is_ready() for part in storage):
            raise StackError("Girder does not work any more.")
        old = [part for part in self.parts if part not in storage]
        kept = [part for part in old if _is_like(part, scheduler, _WORKER_ONLY)]
        has_workers = bool(kept) and self._has_all(wanted)
        for part in old:
            if part not in kept and not has_workers:
                self.clear(part)
        self.parts = [*storage, *(old if has_workers else kept)]
        self._ended.clear()
        self._empty_logs()
        if not kept:
            self._launch([scheduler])
        if not has_workers:
            self._launch(wanted)
        until(lambda: self.registered_workers() == sorted(part.name for part in wanted))

    def _has_all(self, wanted: list[Part]) -> bool:
        """Return True if these workers, and no others, run and are registered."""
        old = [part for part in self.parts if part.is_worker]
        return (
            len(old) == len(wanted)
            and all(map(_is_like, old, wanted, [_SCHEDULER_ONLY] * len(old)))
            and self.registered_workers() == sorted(part.name for part in old)
        )

    def _end_jobs(self) -> None:
        if self.cancel_open_jobs():
            until(lambda: not self.open_jobs(), _JOBS_END_S)

    def _empty_logs(self) -> None:
        for part in self.parts:
            with contextlib.suppress(FileNotFoundError):
                os.truncate(part.log, 0)


def _is_like(part: Part, wanted: Part, unread: tuple[str, ...]) -> bool:
    """Return True if a part works and has the command and the environment of another."""
    if not part.running or part.command != wanted.command:
        return False
    ours, theirs = (
        {name: value for name, value in each.env.items() if not name.startswith(unread)}
        for each in (part, wanted)
    )
    return ours == theirs and part.is_ready()


class FaultPool:
    """The shared stack of a process of pytest, started when a test asks for it first.

    Parameters
    ----------
    start
        Starts the stack in a directory.
    directory
        Where it is started; another directory follows if it is beyond repair.
    """

    def __init__(self, start: Callable[[Path], SharedFaultStack], directory: Path) -> None:
        self._start = start
        self._directory = directory
        self._count = 0
        self._stack: SharedFaultStack | None = None

    def take(self, workers: int, threads: int, env: Mapping[str, str]) -> SharedFaultStack:
        """Return the stack with these options, which must not concern Girder."""
        assert all(name.startswith((*_SCHEDULER_ONLY, *_WORKER_ONLY)) for name in env)
        if self._stack is not None:
            try:
                self._stack.prepare(workers, threads, env)
                return self._stack
            except Exception as e:  # noqa: BLE001 - a test may have left it in any state
                print(f"The stack of earlier tests is replaced: {e!r}")
                self.close()
        self._count += 1
        self._stack = self._start(self._directory / f"stack{self._count}")
        self._stack.prepare(workers, threads, env)
        return self._stack

    def close(self) -> None:
        """Stop the stack."""
        if self._stack is not None:
            self._stack.stop()
            self._stack = None
