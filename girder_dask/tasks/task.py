"""Functions that can run as Girder jobs."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar, cast

from girder_dask import describing
from girder_dask.client import futures
from girder_dask.client.backend import Backend, get_backend
from girder_dask.client.result import JobResult, MapResult
from girder_dask.errors import SubmissionError, TaskNotFoundError
from girder_dask.protocol.messages import Submission
from girder_dask.tasks import mapping, untracked
from girder_dask.tasks import options as call_options
from girder_dask.tasks.callables import found_at
from girder_dask.tasks.composition import Signature
from girder_dask.tasks.discovery import is_of_tasks
from girder_dask.tasks.options import TaskSettings
from girder_dask.tasks.running_job import current_job
from girder_dask.utils.module_loading import load_module

__all__ = ["Task", "find_task"]

P = ParamSpec("P")
R = TypeVar("R")


class Task(Generic[P, R]):
    """A function that can run as a job, created by :func:`girder_dask.task`.

    Calling it calls the function in this process.
    """

    def __init__(self, function: Callable[..., R], settings: TaskSettings) -> None:
        self.function = function
        self.settings = settings
        functools.update_wrapper(self, function)
        # Described functions have these two as well, but those of the task handle ``bind``.
        for name in ("describe", "call_item_task"):
            vars(self).pop(name, None)

    @property
    def name(self) -> str:
        """``package.module:qualified_name``, by which a worker finds the task."""
        return f"{self.function.__module__}:{self.function.__qualname__}"

    @functools.cached_property
    def _parameters(self) -> inspect.Signature:
        """The signature of the function, without ``self`` if the task is bound."""
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

        On the worker, transforms among the arguments (:mod:`girder_dask.transforms`) are replaced
        by what they stand for, and a ``JobResult`` by the value of its job, for which this one
        waits in the queue. The following keyword arguments set fields of the job, and are not
        passed to the function.

        Parameters
        ----------
        girder_job_title, girder_job_type, girder_job_public, girder_job_other_fields
            Fields of this job, instead of those in ``@task``.
        girder_user
            The user document of the owner, by default the user of the Girder request.
        girder_result_hooks
            Transforms of the result: the first for the first element of a tuple, and so on,
            or nested like the result.
        girder_client_token
            A Girder token for the job, instead of one of its own.
        girder_client_session_kwargs
            Attributes of the ``requests.Session`` of the job's Girder client.
        girder_api_url
            Girder's REST API as the workers reach it.
        girder_job_disable
            Run without a job: on the cluster, or at once in this process if no Girder is known.
            Returns a :class:`girder_dask.tasks.untracked.UntrackedResult`.

        Returns
        -------
        JobResult
            The recorded job. ``delay()`` does not wait for the cluster.

        Raises
        ------
        SubmissionError
            If the arguments do not fit the function or cannot be packed. No job was created.
        NotConnectedError
            If this process has no connection to Girder.
        GirderError
            If Girder cannot be reached, or the user may not start the task.
        """
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> JobResult:
        """Do what :meth:`delay` does, with the arguments as a sequence and a mapping.

        The options are those of :meth:`delay`, and ``retries``, ``timeout``, ``resources``,
        ``priority``, ``isolation`` and ``at_most_once``, instead of those in ``@task``. Either of
        ``countdown`` (seconds from now) and ``eta`` (a ``datetime``, in UTC if it has no zone)
        sets the earliest start. Until then the job is QUEUED and occupies no worker.
        """
        arguments, among = call_options.split(kwargs or {})
        options = among | options
        if options.get("girder_job_disable"):
            # It has the methods of a JobResult.
            return cast("JobResult", self._start_without_job(tuple(args or ()), arguments, options))
        backend = get_backend()
        (job,) = backend.submit([self._submission(backend, tuple(args or ()), arguments, options)])
        result = JobResult(job)
        futures.pin(backend, [result])
        return result

    def map(self, *iterables: Iterable[Any], **kwargs: Any) -> MapResult:
        """Record a job for each element, under one parent job.

        The parent shows how many of its jobs have ended. It ends when all have ended. Canceling
        it cancels all. A map of nothing is an empty result.

        Parameters
        ----------
        *iterables
            One iterable per positional argument of the function. As with the built-in ``map``, the
            shortest ends the map.
        **kwargs
            Keyword arguments of the function, the same for all calls, options of :meth:`delay`,
            and the following.
        girder_map_titles, girder_map_hooks
            The title and the result hooks of each job: a function of the arguments of one call, or
            an iterable with a value for each call.
        total, girder_map_total
            The number of calls, if the iterables do not have lengths. ``total`` is an argument of
            the function if that takes one of this name.

        Returns
        -------
        MapResult
            The parent job. ``results`` are its jobs, ``get()`` returns the list of their values.

        Raises
        ------
        SubmissionError, NotConnectedError, GirderError
            The errors of :meth:`delay`. No job was created.
        """
        if not iterables:
            raise SubmissionError(
                f"{self.name}.map() needs an iterable for each argument. No job was created.",
                task=self.name,
            )
        rows = zip(*iterables, strict=False)
        return self._map(rows, mapping.known_length(iterables), kwargs)

    def starmap(self, rows: Iterable[Iterable[Any]], **kwargs: Any) -> MapResult:
        """Do what :meth:`map` does, with the arguments of each call as one element.

        As with ``itertools.starmap``, each element holds the positional arguments of a call.
        """
        return self._map(map(tuple, rows), mapping.known_length([rows]), kwargs)

    def _map(
        self, rows: Iterable[tuple[Any, ...]], length: int | None, kwargs: Mapping[str, Any]
    ) -> MapResult:
        if "total" in kwargs and not self._takes("total"):
            kwargs = {**kwargs, "girder_map_total": kwargs["total"]}
            del kwargs["total"]
        backend = get_backend()
        submit = functools.partial(self._submission, backend)
        calls = mapping.MapCalls(self.name, self.settings, submit, rows, length, kwargs)
        return mapping.start(backend, calls)

    def _takes(self, argument: str) -> bool:
        """Return True if the function has an argument of this name."""
        parameters = self._parameters.parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return takes_any or argument in parameters

    def options(self, **changes: Any) -> Task[P, R]:
        """Return the same task with other options: ``@task``'s except ``bind``, and a start time.

        ``countdown`` and ``eta`` are those of :meth:`apply_async`.

        Raises
        ------
        SubmissionError
            If an option does not exist or is invalid.

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
        """Return a signature: a call that is not started yet, for chains and groups."""
        return Signature(self, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Signature:
        """Return an immutable signature, which ignores the results before it in a chain."""
        return Signature(self, args, kwargs, immutable=True)

    def signature(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        immutable: bool = False,
        **options: Any,
    ) -> Signature:
        """Return a signature, with the arguments as a sequence and a mapping."""
        return Signature(self, args, kwargs, immutable=immutable).set(**options)

    def AsyncResult(self, task_id: str) -> JobResult:
        """Return the JobResult of a job id, under Celery's name."""
        return JobResult(task_id)

    def describe(self) -> dict[str, Any]:
        """Return the description of the function by its ``argument(…)`` decorators."""
        return describing.describe(self)

    def call_item_task(
        self, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the function here, with inputs as Girder's item tasks bind them."""
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
                    f"A worker cannot find {self.name} by name. Define it with @task at the top "
                    "level of a module, in a package that is installed in Girder and on the "
                    "workers. No job was created.",
                    task=self.name,
                )
            function = self
        call_options.check(self.name, self._parameters, args, kwargs, options)
        return call_options.submission(self.name, self.settings, args, kwargs, options, function)

    def _start_without_job(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Mapping[str, Any]
    ) -> untracked.UntrackedResult:
        call_options.check(self.name, self._parameters, args, kwargs, options)
        payload, dependencies, _, _ = call_options.pack(self.name, args, kwargs, {}, self)
        later = call_options.earliest_start(self.name, self.settings, options)
        if dependencies or options.get("girder_result_hooks") or later is not None:
            raise SubmissionError(
                f"{self.name} was started with girder_job_disable=True, but the JobResult, the "
                "result hooks or the start time of the call need a job.",
                task=self.name,
            )
        how = call_options.execution_options(self.name, self.settings, options)
        return untracked.start(self.name, payload, how)


def find_task(name: str, *, strictly: bool = False) -> Task[Any, Any]:
    """Import the task of this name, as ``package.module:qualified_name``.

    Parameters
    ----------
    strictly
        Whether only modules in the entry point group ``girder_dask.tasks`` are imported, and the
        name of the task must be exactly ``name``.

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
            f"No installed package names {module_name}, or a package that it is in, in the entry "
            "point group girder_dask.tasks, so it is not imported for users who may not run code "
            "of their own."
        )
    found: Any = load_module(module_name)
    try:
        for part in qualname.split("."):
            found = getattr(found, part)
    except AttributeError:
        found = None
    if not isinstance(found, Task) or (strictly and found.name != name):
        raise TaskNotFoundError(
            f"The module {module_name} is installed here, but has no task {qualname!r}. Install "
            "the same version of its package here as in Girder."
        )
    return found
