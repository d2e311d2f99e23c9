"""Execution of the transforms of one run: fetching, pushing and clean-up."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dask.utils import format_bytes

from girder_dask import transforms as _transforms  # noqa: F401 - registers those of plain calls
from girder_dask.errors import TransformError
from girder_dask.files.transform_base import ResultTransform, explain
from girder_dask.files.upload_recovery import UploadRecovery
from girder_dask.protocol.error_text import name_of, summary
from girder_dask.protocol.payload import Call
from girder_dask.protocol.transform_types import is_transform
from girder_dask.tasks.running_job import RunningJob
from girder_dask.utils.pytree import tree_leaves, tree_map
from girder_dask.worker.propagation.fork_exit import ending_forks
from girder_dask.worker.run.workspace import Workspace

__all__ = ["TransformRunner", "amount"]


def amount(current: int, total: int | None) -> str:
    """Format a number of bytes, with the total if it is known.

    >>> amount(12_345_678, 100_000_000)
    '11.77 MiB of 95.37 MiB'
    >>> amount(512, None)
    '512 B'
    """
    of_total = "" if total is None else f" of {format_bytes(total)}"
    return f"{format_bytes(current)}{of_total}"


class TransformRunner:
    """Executor of the transforms and result hooks of one run.

    Parameters
    ----------
    job
        The job. Transforms get its client, directory and id.
    cache
        The cache of files on this host, or None.
    check
        Called before each transform; raises to end the run.
    confined
        Whether hooks upload and delete only files in the directories of the job.
    inputs
        The directory of fetched files. By default the working directory of the task.
    guard_forks
        Returns a context that ends each process forked in it. Each method of a transform runs in
        one of its own, so that no fork goes on with the run.
    """

    def __init__(
        self,
        job: RunningJob,
        cache: Any,
        check: Callable[[], None],
        *,
        confined: bool = False,
        inputs: Workspace | None = None,
        guard_forks: Callable[[], contextlib.AbstractContextManager[None]] = ending_forks,
    ) -> None:
        self._guard_forks = guard_forks
        self._confined = confined
        self._inputs = inputs
        self._cwd: str | None = None
        self._hooks: set[int] = set()
        self._job = job
        self._cache = cache
        self._check = check
        self._all: dict[int, Any] = {}
        self._ran: set[int] = set()
        self._links: set[tuple[int, int]] = set()
        self._upload_recovery = UploadRecovery(job.id or "", job.request.attempt)
        self._lock = threading.Lock()
        self._runs = 0
        self._counts: dict[int, tuple[int, int | None]] = {}
        self._verb = ""

    def register(self, call: Call) -> None:
        """Register the transforms and hooks of a call for clean-up, whether they run or not."""
        for leaf in tree_leaves([call.args, dict(call.kwargs), call.hooks]):
            if is_transform(leaf):
                self._all[id(leaf)] = leaf
        self._hooks = {id(leaf) for leaf in tree_leaves(call.hooks)}

    def has_inputs(self, call: Call) -> bool:
        """Return True if a transform is among the arguments of a call."""
        return any(map(is_transform, tree_leaves([call.args, dict(call.kwargs)])))

    def fetch(self, call: Call) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Run the transforms among the arguments, and return the arguments with their values."""

        def value_of(leaf: Any) -> Any:
            if not is_transform(leaf):
                return leaf
            return self._run(leaf)

        with self._phase("Fetching"):
            return tree_map(value_of, call.args), tree_map(value_of, dict(call.kwargs))

    def push(self, call: Call, value: Any, cwd: str | None = None) -> Any:
        """Run the result hooks, and return the value with its elements replaced by their results.

        Each hook gets the element of a tuple at its position; a single value goes to the first.
        Hooks in a list, tuple or dict get the elements at their positions in such a value.
        ``cwd`` is the directory of relative paths.
        """
        self._cwd = cwd
        results = list(value) if isinstance(value, tuple) else [value]
        with self._phase("Uploading"):
            for i, hook in enumerate(call.hooks[: len(results)]):
                results[i] = self._pushed(hook, results[i])
        self._note_unused(call.hooks[len(results) :], len(results))
        return tuple(results) if isinstance(value, tuple) else results[0]

    def _note_unused(self, hooks: Sequence[Any], results: int) -> None:
        """Log which hooks were not called because the function returned too few values."""
        for n, hook in enumerate(hooks, results + 1):
            for leaf in tree_leaves(hook):
                if callable(getattr(leaf, "transform", None)):
                    self._note(
                        f"{name_of(leaf)} was not called: it is the result hook for value {n}, "
                        f"and the task returned {'one value' if results == 1 else results}."
                    )

    def _note(self, line: str) -> None:
        self._job.job_manager.write(f"girder_dask: {line}\n")

    def _pushed(self, hook: Any, value: Any) -> Any:
        """Return what a hook makes of a value."""
        if isinstance(hook, dict):
            if not isinstance(value, dict) or not hook.keys() <= value.keys():
                raise _mismatch(f"a dict with {', '.join(map(repr, hook))}", value)
            return value | {k: self._pushed(each, value[k]) for k, each in hook.items()}
        if isinstance(hook, (list, tuple)):
            if not isinstance(value, (list, tuple)) or len(value) < len(hook):
                raise _mismatch(f"a list or tuple of {len(hook)} or more elements", value)
            pushed = [self._pushed(each, value[i]) for i, each in enumerate(hook)]
            pushed += value[len(hook) :]
            return pushed if isinstance(value, list) else getattr(value, "_make", tuple)(pushed)
        return self._run(hook, value) if callable(getattr(hook, "transform", None)) else value

    def notify_failure(self, call: Call, write: Callable[[str], None]) -> None:
        """Call ``exception()`` of all hooks because there is no result. Log their errors."""
        for hook in tree_leaves(call.hooks):
            try:
                if callable(getattr(hook, "exception", None)):
                    self._bind(hook)
                    with self._guard_forks():
                        hook.exception()
            except BaseException as e:  # noqa: BLE001 - must not hide why there is no result
                write(f"exception() of {name_of(hook)} failed: {summary(e)}\n")

    def _run(self, transform: Any, *data: Any) -> Any:
        self._check()
        self._bind(transform)
        if is_transform(transform):
            self._all.setdefault(id(transform), transform)  # another job may have returned it
        self._ran.add(id(transform))
        self._runs += 1
        try:
            with self._guard_forks():
                return transform.transform(*data)
        except Exception as e:
            explained = explain(transform, e)
            if explained is None:
                raise
            raise explained from e

    def _bind(self, transform: Any) -> None:
        """Set the attributes of a transform that belong to this run."""
        job = self._job
        for name, value in (
            ("gc", job.girder_client),
            ("job", {"_id": job.id, "title": job.title}),
        ):
            if hasattr(transform, name):
                setattr(transform, name, value)
        if hasattr(transform, "work_dir"):
            transform.work_dir = self._directory(transform)
        if isinstance(transform, ResultTransform):
            transform.confined, transform.cwd = self._confined, self._cwd
            transform.inputs_dir = self._inputs.made if self._inputs is not None else None
        for name, value in (
            ("cache", self._cache),
            ("links", self._links),
            ("note", self._note),
            ("upload_recovery", self._upload_recovery),
            ("report", functools.partial(self._report, self._runs)),
        ):
            if getattr(transform, name, 0) is None:  # elsewhere the name may mean something else
                setattr(transform, name, value)

    def _directory(self, transform: Any) -> Any:
        if self._inputs is None or id(transform) in self._hooks:
            return self._job.work_dir
        return self._inputs.path()

    # -- progress in bytes ---------------------------------------------------------------------

    def _report(self, index: int, current: int, total: int | None, name: str) -> None:
        """Show the bytes that transforms of this phase have transferred, and the current file."""
        self._check()
        with self._lock:
            self._counts[index] = current, total
            counts = list(self._counts.values())
        done = sum(each for each, _ in counts)
        sizes = [size for _, size in counts]
        whole = None if None in sizes else sum(size for size in sizes if size is not None)
        text = f"{self._verb} {name}, {amount(done, whole)}"
        self._job.job_manager.updateProgress(total=whole or 0, current=done, message=text)

    @contextlib.contextmanager
    def _phase(self, verb: str) -> Iterator[None]:
        """Show the bytes of one phase as progress, then restore the progress of the task."""
        manager = self._job.job_manager
        before = {"total": 0.0, "current": 0.0, "message": "", **manager.progress}
        with self._lock:
            self._verb, self._counts = verb, {}
        yield
        with self._lock:
            counted, self._counts = bool(self._counts), {}
        if counted:
            manager.updateProgress(**before)

    # -- the end -------------------------------------------------------------------------------

    def clean_up(self, write: Callable[[str], None]) -> None:
        """Have each transform clean up, in reverse order, and log their errors."""
        while self._all:
            key, transform = self._all.popitem()
            try:
                if key not in self._ran:
                    self._bind(transform)
                with self._guard_forks():
                    transform.cleanup()
            except BaseException as e:  # noqa: BLE001 - must not hide how the run ended
                write(f"Cleaning up {name_of(transform)} failed: {summary(e)}\n")


def _mismatch(wanted: str, value: Any) -> TransformError:
    return TransformError(
        f"The function returned {name_of(value):.200}, but girder_result_hooks has hooks for the "
        f"elements of {wanted}. Return such a value, or give the hooks in the shape of the result."
    )
