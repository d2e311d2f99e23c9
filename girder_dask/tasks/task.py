"""``@task``: a Python function that can run as a Girder job.

The decorator records its arguments and nothing more; importing a module of tasks
connects to nothing. All else happens in ``delay()``.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, cast, overload

from girder_dask import describing
from girder_dask.client import futures
from girder_dask.client.backend import Backend, get_backend
from girder_dask.client.result import JobResult, MapResult
from girder_dask.errors import SubmissionError, TaskNotFoundError
from girder_dask.protocol.messages import Submission
from girder_dask.tasks import options as calls
from girder_dask.tasks import untracked
from girder_dask.tasks.callables import checked, found_at
from girder_dask.tasks.composition import Signature
from girder_dask.tasks.context import current_job
from girder_dask.tasks.discovery import is_of_tasks
from girder_dask.tasks.options import TaskSettings
from girder_dask.utils.module_loading import load_module

__all__ = ["Task", "find_task", "task"]

P = ParamSpec("P")
R = TypeVar("R")


class Task(Generic[P, R]):
    """A function that can run as a job. Calling it calls the function, here and now.

    Made by :func:`task`.
    """

    def __init__(self, function: Callable[..., R], settings: TaskSettings) -> None:
        self.function = function
        self.settings = settings
        functools.update_wrapper(self, function)
        # Described functions have these two as well; those of the task know of ``bind``.
        for name in ("describe", "call_item_task"):
            vars(self).pop(name, None)

    @property
    def name(self) -> str:
        """``package.module:qualified_name``, by which a worker finds the task."""
        return f"{self.function.__module__}:{self.function.__qualname__}"

    @functools.cached_property
    def _parameters(self) -> inspect.Signature:
        """What the task is called with; that of the function without ``self`` if it is bound."""
        signature = inspect.signature(self.function)
        if self.settings.bind:
            parameters = list(signature.parameters.values())
            signature = signature.replace(parameters=parameters[1:])
        return signature

    def __getattr__(self, name: str) -> Any:
        if name == "__signature__":  # for inspect.signature
            return self._parameters
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.settings.bind:
            return self.function(current_job().bound_to(self), *args, **kwargs)
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._travels_by_value:
            return type(self), (self.function, self.settings)
        return find_task, (self.name,)

    @property
    def _travels_by_value(self) -> bool:
        """Whether workers cannot find the function by its name."""
        name = self.name
        if "<" in name or name.startswith("__main__:"):
            return True
        module, _, qualname = name.partition(":")
        return module in sys.modules and not isinstance(found_at(module, qualname), Task)

    def delay(self, *args: Any, **kwargs: Any) -> JobResult:
        """Record a job that calls the function with these arguments, and send it to the cluster.

        Transforms among the arguments (:mod:`girder_dask.transforms`) become what they
        stand for on the worker, and a ``JobResult`` the value of its job, for which this
        one waits in the queue. The following keyword arguments set fields of the job and
        do not reach the function.

        Parameters
        ----------
        girder_job_title, girder_job_type, girder_job_public, girder_job_other_fields
            Fields of this job, in place of those that ``@task`` was given.
        girder_user
            The user document of the owner, by default the user of the Girder request.
        girder_result_hooks
            Transforms of the result: the first for the first element of a tuple, and so on,
            or nested as the result is.
        girder_client_token
            A Girder token that the job uses in place of one of its own.
        girder_client_session_kwargs
            Attributes of the ``requests.Session`` of the job's Girder client.
        girder_api_url
            Girder's REST API as the workers reach it.
        girder_job_disable
            Run without a job: on the cluster, or here and now where no Girder is known. What
            is returned then is a :class:`girder_dask.tasks.untracked.UntrackedResult`.

        Returns
        -------
        JobResult
            The job, already recorded. It does not wait for the cluster.

        Raises
        ------
        SubmissionError
            If the arguments do not fit the function or cannot be packed. No job was made.
        NotConnectedError
            If there is no Girder here.
        GirderError
            If Girder cannot be reached, or the user may not start this.
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> JobResult:
        """Do what :meth:`delay` does, with the arguments as a sequence and a mapping.

        The options may be those of :meth:`delay`, and ``retries``, ``timeout``,
        ``resources``, ``priority``, ``isolation`` and ``at_most_once`` in place of what
        ``@task`` was given.
        """
        arguments, among = calls.split(kwargs or {})
        options = among | options
        if options.get("girder_job_disable"):
            # It stands where a JobResult stands, with its methods.
            return cast("JobResult", self._start_without_job(tuple(args or ()), arguments, options))
        backend = get_backend()
        (job,) = backend.submit([self._submission(backend, tuple(args or ()), arguments, options)])
        result = JobResult(job)
        futures.pin(backend, [result])
        return result

    def map(self, *iterables: Iterable[Any], **kwargs: Any) -> MapResult:
        """Record a job for each element, all at once, under one parent job.

        The parent shows how many of them have ended. It ends when all have; canceling it
        cancels all.

        Parameters
        ----------
        *iterables
            One for each positional argument of the function, as for the built-in ``map``.
        **kwargs
            Keyword arguments of the function that are the same for all calls, and the
            options of :meth:`delay`.

        Returns
        -------
        MapResult
            The parent job; ``results`` are the jobs under it, ``get()`` is the list of their
            values.

        Raises
        ------
        SubmissionError, NotConnectedError, GirderError
            As :meth:`delay` does. No job was made then.
        """
        arguments, options = calls.split(kwargs)
        if options.pop("girder_job_disable", False):
            raise SubmissionError(
                f"{self.name}.map() shows its progress on a job. Without jobs, use "
                "Client.map of Dask. No job was made.",
                task=self.name,
            )
        backend = get_backend()
        rows = list(zip(*iterables, strict=False))
        if not rows:
            raise SubmissionError(
                f"{self.name}.map() was given nothing to map over. No job was made.", task=self.name
            )
        parent = calls.map_parent(self.name, self.settings, options)
        options = {**options, "girder_job_title": None}
        submissions = []
        for n, row in enumerate(rows, 1):
            options["girder_job_title"] = f"{parent.title} {n:,}/{len(rows):,}"
            submissions.append(self._submission(backend, row, arguments, options))
        job, *children = backend.submit(submissions, parent)
        result = MapResult(job, map(JobResult, children))
        futures.pin(backend, result.results)
        return result

    def options(self, **changes: Any) -> Task[P, R]:
        """Return the same task with other options, those of ``@task`` but ``bind``.

        Raises
        ------
        SubmissionError
            If an option does not exist or makes no sense.

        Examples
        --------
        >>> from girder_dask import task
        >>> @task
        ... def double(n):
        ...     return 2 * n
        >>> urgent = double.options(priority=10, retries=2)
        >>> urgent.settings.retries, double.settings.retries
        (2, 0)
        """
        return Task(self.function, self.settings.changed(self.name, changes))

    def s(self, *args: Any, **kwargs: Any) -> Signature:
        """Return a call that is not started yet, for chains and groups."""
        return Signature(self, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        """Return such a call that takes no arguments from what comes before it in a chain."""
        return Signature(self, args, kwargs, immutable=True)

    def signature(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        **options: Any,
    ) -> Signature:
        """Return such a call, with the arguments as a sequence and a mapping."""
        return Signature(self, args, kwargs, immutable=immutable).set(**options)

    def AsyncResult(self, task_id: str) -> JobResult:
        """Return the result of a job by its id, under the name that Celery has for it."""
        return JobResult(task_id)

    def describe(self) -> dict[str, Any]:
        """Return the description that ``argument(…)`` decorators gave the function."""
        return describing.describe(self)

    def call_item_task(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the function here with inputs that are bound as Girder's item tasks bind them."""
        return describing.call_item_task(self, inputs, outputs)

    def _submission(
        self,
        backend: Backend,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Submission:
        function = None
        if self._travels_by_value:
            if not backend.ships_code:
                raise SubmissionError(
                    f"{self.name} cannot be found by its name on a worker. Define it at the top of "
                    "a module of a package that is installed in Girder and on the workers, with "
                    "@task above it. No job was made.",
                    task=self.name,
                )
            function = self
        calls.check(self.name, self._parameters, args, kwargs, options)
        return calls.submission(self.name, self.settings, args, kwargs, options, function)

    def _start_without_job(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> untracked.UntrackedResult:
        calls.check(self.name, self._parameters, args, kwargs, options)
        payload, dependencies, _, _ = calls.pack(self.name, args, kwargs, {}, self)
        if dependencies or options.get("girder_result_hooks"):
            raise SubmissionError(
                f"{self.name} was started with girder_job_disable=True, and with the result of a "
                "job or result hooks, which need a job.",
                task=self.name,
            )
        how = calls.execution_options(self.name, self.settings, options)
        return untracked.start(self.name, payload, how)


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...


@overload
def task(
    *,
    bind: Literal[True],
    title: str | None = ...,
    type: str = ...,
    public: bool = ...,
    other_fields: Mapping[str, Any] | None = ...,
    retries: int = ...,
    timeout: float | None = ...,
    resources: Mapping[str, float] | None = ...,
    priority: int = ...,
    isolation: str | None = ...,
    at_most_once: bool = ...,
) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...


@overload
def task(
    *,
    bind: Literal[False] = ...,
    title: str | None = ...,
    type: str = ...,
    public: bool = ...,
    other_fields: Mapping[str, Any] | None = ...,
    retries: int = ...,
    timeout: float | None = ...,
    resources: Mapping[str, float] | None = ...,
    priority: int = ...,
    isolation: str | None = ...,
    at_most_once: bool = ...,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(function: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
    """Make a function, which may be ``async``, one that can run as a Girder job.

    Parameters
    ----------
    title
        The title of its jobs, by default the name of the function.
    type
        The type of its jobs, by which Girder's job list filters.
    public
        Whether anybody may read its jobs.
    other_fields
        More fields for its job documents.
    bind
        Whether the function gets the running job (:class:`girder_dask.tasks.context.RunningJob`)
        as its first argument.
    retries
        How many more times a call that raised is tried, after a pause that doubles.
    timeout
        Seconds that a call may run. Its Python code is then interrupted, and the job ends
        in ERROR; C code of a library is not interrupted before it returns, unless the task
        runs in a process of its own.
    resources
        Dask worker resources that a call needs, such as ``{'GPU': 1}``.
    priority
        Larger runs earlier.
    isolation
        ``'process'``, for a process of its own: what C code prints lands in the log, its memory
        is given back, and it can be killed. ``'thread'`` and None: a thread of the worker, unless
        the worker gives each job a process (``girder.worker.isolation``).
    at_most_once
        Whether a call whose worker or scheduler is lost ends in ERROR, in place of running
        again, if it may have begun. It must have no ``retries``.

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


def find_task(name: str, *, strictly: bool = False) -> Task[Any, Any]:
    """Import the task of this name, as ``package.module:qualified_name``.

    Parameters
    ----------
    strictly
        Whether nothing is imported but modules of packages that name their tasks in the
        entry point group ``girder_dask.tasks``, and other names of a task do not count.

    Raises
    ------
    ModuleNotFoundError, ImportError
        If its module cannot be imported here.
    TaskNotFoundError
        If the module holds no such task.
    """
    module_name, _, qualname = name.partition(":")
    if strictly and not is_of_tasks(module_name):
        raise TaskNotFoundError(
            f"No installed package names {module_name}, or a package that it is in, as holding "
            "tasks (the entry point group girder_dask.tasks), so it is not imported for users who "
            "may not run code of their own."
        )
    found: Any = load_module(module_name)
    try:
        for part in qualname.split("."):
            found = getattr(found, part)
    except AttributeError:
        found = None
    if not isinstance(found, Task) or (strictly and found.name != name):
        raise TaskNotFoundError(
            f"The module {module_name} is installed here, but holds no task {qualname!r}. "
            "Install the same version of its package here as in Girder."
        )
    return found
