"""``@task``: a Python function that can run as a Girder job.

The decorator records its arguments and nothing more; importing a module of tasks
connects to nothing. All else happens in ``delay()``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, overload

from girder_dask import config, submit
from girder_dask.context import current_job
from girder_dask.errors import SubmissionError, TaskNotFoundError
from girder_dask.jobs import HANDLER
from girder_dask.payload import pack_call, readable
from girder_dask.result import JobResult

__all__ = ["ENTRY_POINT_GROUP", "Task", "TaskSettings", "discover", "find_task", "task"]

#: Distributions that hold tasks name their modules in this entry point group.
ENTRY_POINT_GROUP = "girder_dask.tasks"

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class TaskSettings:
    """What ``@task(…)`` was given; see :func:`task`."""

    title: str | None = None
    type: str = "dask"
    public: bool = False
    handler: str = HANDLER
    other_fields: Mapping[str, Any] = field(default_factory=dict)
    bind: bool = False
    retries: int = 0
    timeout: float | None = None
    resources: Mapping[str, float] | None = None
    priority: int = 0
    isolation: str = "thread"


#: The names that girder_worker gave to the options of a call, and what they set.
_CALL_OPTIONS = {
    "girder_job_title": "title",
    "girder_job_type": "type",
    "girder_job_public": "public",
    "girder_job_handler": "handler",
    "girder_job_other_fields": "other_fields",
    "girder_user": "user",
    "girder_client_token": "token",
    "girder_api_url": "api_url",
    "girder_result_hooks": "hooks",
}
_PLACEMENT_OPTIONS = ("retries", "timeout", "resources", "priority", "isolation")


class Task(Generic[P, R]):
    """A function that can run as a job. Calling it calls the function, here and now.

    Made by :func:`task`.
    """

    def __init__(self, function: Callable[..., R], settings: TaskSettings) -> None:
        self.function = function
        self.settings = settings
        functools.update_wrapper(self, function)

    @property
    def name(self) -> str:
        """``package.module:qualified_name``, by which a worker finds the task."""
        return f"{self.function.__module__}:{self.function.__qualname__}"

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """What the task is called with; that of the function without ``self`` if it is bound."""
        signature = inspect.signature(self.function)
        if self.settings.bind:
            parameters = list(signature.parameters.values())
            signature = signature.replace(parameters=parameters[1:])
        return signature

    def __getattr__(self, name: str) -> Any:
        if name == "__signature__":  # for inspect.signature
            return self.signature
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.settings.bind:
            return self.function(current_job(), *args, **kwargs)
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return find_task, (self.name,)

    def delay(self, *args: Any, **kwargs: Any) -> JobResult:
        """Record a job that calls the function with these arguments, and send it to the cluster.

        Transforms among the arguments (:mod:`girder_dask.transforms`) become what they
        stand for on the worker. The following keyword arguments set fields of the job and
        do not reach the function.

        Parameters
        ----------
        girder_job_title, girder_job_type, girder_job_public, girder_job_other_fields
            Fields of this job, in place of those that ``@task`` was given.
        girder_user
            The user document of the owner, by default the user of the Girder request.
        girder_result_hooks
            Transforms of the result: the first for the first element of a tuple, and so on.
        girder_client_token
            A Girder token that the job uses in place of one of its own.
        girder_api_url
            Girder's REST API as the workers reach it.

        Returns
        -------
        JobResult
            The job, already recorded. It does not wait for the cluster.

        Raises
        ------
        SubmissionError
            If the arguments do not fit the function or cannot be pickled. No job was made.
        NotConnectedError
            If there is no Girder here.
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
        ``resources``, ``priority`` and ``isolation`` in place of what ``@task`` was given.
        """
        kwargs = dict(kwargs or {})
        for name in _CALL_OPTIONS:
            if name in kwargs:
                options[name] = kwargs.pop(name)
        backend = submit.backend()
        submission = self._submission(tuple(args or ()), kwargs, options)
        (job,) = backend.submit([submission])
        return JobResult(job)

    def _check(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        """Raise SubmissionError for a call that cannot work, before anything is recorded."""
        problem = None
        if "<locals>" in self.name or self.name.startswith("__main__:"):
            problem = (
                "cannot be found by its name on a worker. Define it at the top of a module of a "
                "package that is installed in Girder and on the workers"
            )
        unknown = options.keys() - _CALL_OPTIONS.keys() - set(_PLACEMENT_OPTIONS)
        if unknown:
            problem = f"was started with options that do not exist: {', '.join(sorted(unknown))}"
        isolation = options.get("isolation", self.settings.isolation)
        if isolation != "thread":
            problem = (
                f"asks for isolation={isolation!r}, and this version of girder_dask runs tasks in "
                "threads only"
            )
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as e:
            problem = f"has the signature {self.signature}, which the arguments do not fit: {e}"
        if problem is not None:
            raise SubmissionError(f"{self.name} {problem}. No job was made.", task=self.name)

    def _submission(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], options: Mapping[str, Any]
    ) -> submit.Submission:
        self._check(args, kwargs, options)
        fields = {_CALL_OPTIONS.get(name, name): value for name, value in options.items()}
        hooks = tuple(fields.pop("hooks", None) or ())
        settings = self.settings
        chosen = {name: fields.get(name, getattr(settings, name)) for name in _PLACEMENT_OPTIONS}
        base: dict[str, Any] = {n: getattr(settings, n) for n in ("type", "public", "handler")}
        base["title"] = settings.title or self.function.__name__
        base["other_fields"] = settings.other_fields
        return submit.Submission(
            task=self.name,
            package=package_of(self.function.__module__),
            payload=pack_call(
                args, kwargs, hooks, task=self.name, limit=config.nbytes("max-payload")
            ),
            args=readable(list(args)),
            kwargs=readable(kwargs),
            **(base | fields | _placement(chosen, self.name)),
        )


def _placement(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return options of placement as plain numbers, which any database takes."""
    plain: dict[str, Any] = dict(options)
    try:
        for option in ("retries", "priority"):
            if option in plain:
                plain[option] = operator.index(plain[option])
        if plain.get("timeout") is not None:
            plain["timeout"] = _positive(plain["timeout"])
        if plain.get("resources") is not None:
            plain["resources"] = {str(k): _positive(v) for k, v in plain["resources"].items()}
        if plain.get("retries", 0) < 0:
            raise ValueError("retries is less than 0")
    except (TypeError, ValueError, AttributeError) as e:
        raise SubmissionError(
            f"{name} was started with options that make no sense ({e}). No job was made.",
            task=name,
        ) from e
    return plain


def _positive(value: Any) -> float:
    if isinstance(value, str) or not 0 < float(value) < float("inf"):
        raise ValueError(f"{value!r} is no positive number")
    return float(value)


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
    isolation: str = ...,
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
    isolation: str = ...,
) -> Callable[[Callable[P, R]], Task[P, R]]: ...


def task(function: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
    """Make a function one that can run as a Girder job.

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
        Whether the function gets the running job (:class:`girder_dask.context.RunningJob`)
        as its first argument.
    retries
        How many more times a call that raised is tried.
    timeout
        Seconds that a call may run. Its Python code is then interrupted, and the job ends
        in ERROR; code that waits outside of Python is not interrupted before it returns.
    resources
        Dask worker resources that a call needs, such as ``{'GPU': 1}``.
    priority
        Larger runs earlier.
    isolation
        ``'thread'``, for a thread of the worker. Nothing else is there yet.

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
        return Task(function, TaskSettings())
    given = {k: v for k, v in settings.items() if not (k == "other_fields" and v is None)}
    return functools.partial(_decorate, settings=TaskSettings(**given))


def _decorate(function: Callable[P, R], settings: TaskSettings) -> Task[P, R]:
    return Task(function, settings)


def with_settings(original: Task[P, R], **changes: Any) -> Task[P, R]:
    """Return the same task with other settings."""
    return Task(original.function, replace(original.settings, **changes))


def find_task(name: str) -> Task[Any, Any]:
    """Import the task of this name, as ``package.module:qualified_name``.

    Raises
    ------
    ModuleNotFoundError, ImportError
        If its module cannot be imported here.
    TaskNotFoundError
        If the module holds no such task.
    """
    module_name, _, qualname = name.partition(":")
    found: Any = importlib.import_module(module_name)
    try:
        for part in qualname.split("."):
            found = getattr(found, part)
    except AttributeError:
        found = None
    if not isinstance(found, Task):
        raise TaskNotFoundError(
            f"The module {module_name} is installed here, but holds no task {qualname!r}. "
            "Install the same version of its package here as in Girder."
        )
    return found


@functools.lru_cache(maxsize=1024)
def package_of(module: str) -> str | None:
    """Return the distribution that holds a module of tasks, as ``name version``, or None."""
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry_point.value.partition(":")[0] == module and entry_point.dist is not None:
            return f"{entry_point.dist.name} {entry_point.dist.version}"
    top = module.partition(".")[0]
    names = importlib.metadata.packages_distributions().get(top)
    return f"{names[0]} {importlib.metadata.version(names[0])}" if names else None


def discover() -> dict[str, Task[Any, Any]]:
    """Import every module that the entry point group ``girder_dask.tasks`` names.

    Returns
    -------
    dict
        The tasks by name, in order of their names.

    Raises
    ------
    ImportError
        If a module that is named cannot be imported.
    """
    found: dict[str, Task[Any, Any]] = {}
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        module = importlib.import_module(entry_point.value.partition(":")[0])
        found |= {value.name: value for value in vars(module).values() if isinstance(value, Task)}
    return dict(sorted(found.items()))
