"""Conversion of a call into a submission: checked options, packed arguments, job fields."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from msgspec import field
from msgspec.structs import asdict, force_setattr, replace

from girder_dask import config
from girder_dask.client.result import JobResult
from girder_dask.errors import ArgumentError, SubmissionError
from girder_dask.jobs import HANDLER
from girder_dask.protocol.display import readable
from girder_dask.protocol.execution_options import OPTION_NAMES, ExecutionOptions
from girder_dask.protocol.job_fields import checked_fields
from girder_dask.protocol.messages import MapParent, Submission
from girder_dask.protocol.payload import Dependency, pack_call
from girder_dask.protocol.transform_types import is_transform
from girder_dask.tasks.discovery import package_of
from girder_dask.tasks.start_time import START_OPTIONS, not_before
from girder_dask.tasks.untracked import UntrackedResult
from girder_dask.utils.pytree import tree_leaves, tree_map

__all__ = [
    "CALL_OPTIONS",
    "TaskSettings",
    "check",
    "checked_options",
    "earliest_start",
    "execution_options",
    "map_parent",
    "pack",
    "split",
    "submission",
]


class TaskSettings(ExecutionOptions, frozen=True):
    """The settings of a task; see :func:`girder_dask.task`."""

    title: str | None = None
    type: str = "dask"
    public: bool = False
    handler: str = HANDLER
    other_fields: Mapping[str, Any] = field(default_factory=dict)
    bind: bool = False
    countdown: float | None = None
    eta: datetime | None = None

    def changed(self, name: str, changes: Mapping[str, Any]) -> TaskSettings:
        """Return the settings with changes.

        Raises
        ------
        SubmissionError
            If an option does not exist or is invalid. ``name`` is that of the task.
        """
        possible = {*OPTION_NAMES, *START_OPTIONS, "title", "type", "public", "other_fields"}
        _refuse_unknown(name, changes.keys(), possible)
        _refuse_no_text(name, changes)
        not_before(name, changes)
        if any(changes.get(option) is not None for option in START_OPTIONS):
            changes = {**dict.fromkeys(START_OPTIONS), **changes}
        return replace(self, **{**changes, **checked_options(changes, name)})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the values by name, since queued calls outlive changes of the fields."""
        return functools.partial(TaskSettings, **asdict(self)), ()

    def __setstate__(self, state: Sequence[Any]) -> None:
        """Restore the values from a pickle of an earlier release, of a dataclass."""
        known = [name for name in self.__struct_fields__ if name not in START_OPTIONS]
        restored = TaskSettings(**dict(zip(known, state, strict=False)))
        for name in self.__struct_fields__:
            force_setattr(self, name, getattr(restored, name))


#: The options of a call, as girder_worker named them, and what they set.
CALL_OPTIONS = {
    "girder_job_title": "title",
    "girder_job_type": "type",
    "girder_job_public": "public",
    "girder_job_handler": "handler",
    "girder_job_other_fields": "other_fields",
    "girder_user": "user",
    "girder_client_token": "token",
    "girder_client_session_kwargs": "session",
    "girder_api_url": "api_url",
    "girder_result_hooks": "hooks",
    "girder_job_disable": "disable",
}

#: Replacements for options of Celery's ``apply_async``.
_CELERY_REPLACEMENTS = {
    "queue": "name the workers with resources={'queue:NAME': 1} and dask worker --resources",
    "expires": "cancel the job",
    "link": "pass the JobResult to the next delay(), or use a chain",
    "chord": "use girder_dask.chord",
    "time_limit": "use timeout=",
    "soft_time_limit": "use timeout=",
    "max_retries": "use retries=",
}


def split(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of the function and the options of the call."""
    arguments = {k: v for k, v in kwargs.items() if k not in CALL_OPTIONS}
    return arguments, {k: v for k, v in kwargs.items() if k in CALL_OPTIONS}


def check(
    name: str,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Raise SubmissionError for a call that cannot become a job, before anything is recorded."""
    _refuse_unknown(name, options.keys(), {*CALL_OPTIONS, *OPTION_NAMES, *START_OPTIONS})
    try:
        signature.bind(*args, **kwargs)
    except TypeError as e:
        raise SubmissionError(
            f"{name} has the signature {signature}, which the arguments do not fit: {e}. "
            "No job was created.",
            task=name,
        ) from e


def _refuse_unknown(name: str, given: Any, possible: set[str]) -> None:
    unknown = sorted(set(given) - possible)
    if not unknown:
        return
    problem = f"{name} was started with options that do not exist: {', '.join(unknown)}."
    for option in unknown:
        if option in _CELERY_REPLACEMENTS:
            problem += f" In place of Celery's {option}, {_CELERY_REPLACEMENTS[option]}."
        elif close := difflib.get_close_matches(option, possible, 1):
            problem += f" Did you mean {close[0]}?"
    raise SubmissionError(f"{problem} No job was created.", task=name)


def pack(
    name: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    function: Callable[..., Any] | None,
) -> tuple[bytes, list[str], tuple[Any, ...], dict[str, Any]]:
    """Return a call as bytes, the ids of its dependencies, and its arguments for display."""
    found: list[str] = []

    def placeholder(value: Any) -> Any:
        _refuse_hidden(name, value)
        if is_transform(value) and not _takes(value, 0):
            raise SubmissionError(
                f"{name} was given {value!r:.200} as an argument, which is a result hook: its "
                "transform() needs a result. Give it as girder_result_hooks=[…]. "
                "No job was created.",
                task=name,
            )
        if hasattr(value, "results") and not isinstance(value, type):
            return [placeholder(result) for result in value.results]
        if not isinstance(value, JobResult):
            return value
        if value.id not in found:
            found.append(value.id)
        return Dependency(value.id)

    try:
        args, kwargs = tree_map(placeholder, args), tree_map(placeholder, dict(kwargs))
    except RecursionError:
        raise _too_deep(name, placeholder, args, kwargs) from None
    payload = pack_call(
        args,
        kwargs,
        _hooks(name, options.get("girder_result_hooks")),
        function,
        session=options.get("girder_client_session_kwargs"),
        task=name,
        limit=config.nbytes("max-payload"),
    )
    return payload, found, args, dict(kwargs)


def _too_deep(
    name: str,
    function: Callable[[Any], Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> ArgumentError:
    """Return an error that names the argument which is nested too deeply."""
    named = [(f"Argument {n}", v) for n, v in enumerate(args, 1)]
    named += [(f"Argument {k!r}", v) for k, v in kwargs.items()]
    wrong = "An argument"
    for argument, value in named:
        try:
            tree_map(function, value)
        except RecursionError:
            wrong = argument
            break
    return ArgumentError(
        f"{wrong} of {name} contains itself, or is nested too deeply. No job was created. Pass it "
        "in a flat form, or as a Girder file.",
        task=name,
    )


def _refuse_hidden(name: str, value: Any) -> None:
    """Raise SubmissionError for an argument that cannot be replaced by its value."""
    if isinstance(value, type) and hasattr(value, "transform") and hasattr(value, "cleanup"):
        raise SubmissionError(
            f"{name} was given the class {value.__qualname__} as an argument, which fetches "
            f"nothing. Give an object of it, such as {value.__qualname__}(…). No job was created.",
            task=name,
        )
    if isinstance(value, UntrackedResult):
        raise SubmissionError(
            f"{name} was given {value!r}, which has no job that another one could wait for. Pass "
            "its value, from get(). No job was created.",
            task=name,
        )
    if isinstance(value, (set, frozenset)) and any(isinstance(v, JobResult) for v in value):
        raise SubmissionError(
            f"{name} was given a set of JobResults. They stand for their values in lists, tuples "
            "and dicts, not in sets. Pass a list. No job was created.",
            task=name,
        )


def _hooks(name: str, given: Any) -> tuple[Any, ...]:
    """Return the result hooks of a call: one for each result, or nested like the result."""
    if given is None:
        return ()
    if not isinstance(given, (list, tuple, dict)):
        raise SubmissionError(
            f"{name} was started with girder_result_hooks={given!r:.200}. Give a list of hooks, "
            "one for each result. No job was created.",
            task=name,
        )
    for hook in tree_leaves(given):
        usable = callable(getattr(hook, "transform", None)) and not isinstance(hook, type)
        if hook is not None and not usable:
            raise SubmissionError(
                f"{name} was started with {hook!r:.200} among its girder_result_hooks, which is "
                "not a hook: it has no transform(). Give objects such as "
                "GirderUploadToFolder(folder_id), or None where nothing is to be done. "
                "No job was created.",
                task=name,
            )
        if hook is not None and not _takes(hook, 1):
            raise SubmissionError(
                f"{name} was started with {hook!r:.200} among its girder_result_hooks, which is an "
                "input: its transform() takes no result. Pass it as an argument, and give hooks "
                "such as GirderUploadToFolder(folder_id). No job was created.",
                task=name,
            )
    return (given,) if isinstance(given, dict) else tuple(given)


def _takes(transform: Any, values: int) -> bool:
    """Return True if a transform accepts this number of values, or if its signature is unknown."""
    try:
        inspect.signature(transform.transform).bind(*range(values))
    except TypeError:
        return False
    except ValueError:  # not written in Python
        return True
    return True


def submission(
    name: str,
    settings: TaskSettings,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    options: Mapping[str, Any],
    function: Callable[..., Any] | None = None,
) -> Submission:
    """Return the submission of a call.

    Parameters
    ----------
    name, settings
        Name and settings of the task.
    args, kwargs
        The arguments of the function.
    options
        The options of the call: names of :data:`CALL_OPTIONS` and execution options.
    function
        A function to send by value, or None for a task that the workers have installed.

    Raises
    ------
    SubmissionError
        If the call cannot become a job.
    """
    payload, dependencies, args, kwargs = pack(name, args, kwargs, options, function)
    return Submission(
        task=name,
        package=None if function is not None else package_of(name.partition(":")[0]),
        payload=payload,
        dependencies=dependencies,
        args=readable(list(args)),
        kwargs=readable(kwargs),
        not_before=earliest_start(name, settings, options),
        **execution_options(name, settings, options),
        **_fields(name, settings, options, "user", "token", "api_url"),
    )


def map_parent(name: str, settings: TaskSettings, options: Mapping[str, Any]) -> MapParent:
    """Return the parent job of many calls."""
    return MapParent(task=name, **_fields(name, settings, options, "user"))


def execution_options(
    name: str, settings: TaskSettings, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the checked execution options of a call, which override those of the task."""
    return checked_options({n: options.get(n, getattr(settings, n)) for n in OPTION_NAMES}, name)


def earliest_start(name: str, settings: TaskSettings, options: Mapping[str, Any]) -> float | None:
    """Return the earliest start of a call. Its own option overrides that of the task."""
    if any(options.get(option) is not None for option in START_OPTIONS):
        return not_before(name, options)
    return not_before(name, {option: getattr(settings, option) for option in START_OPTIONS})


def _fields(
    name: str, settings: TaskSettings, options: Mapping[str, Any], *more: str
) -> dict[str, Any]:
    """Return the fields of the job. Those of the call override those of the task."""
    fields: dict[str, Any] = {
        n: getattr(settings, n) for n in ("type", "public", "handler", "other_fields")
    }
    fields["title"] = settings.title or name.rpartition(":")[2].rpartition(".")[2]
    wanted = {*fields, *more}
    given = {CALL_OPTIONS[k]: v for k, v in options.items() if k in CALL_OPTIONS}
    fields |= {k: v for k, v in given.items() if k in wanted and v is not None}
    _refuse_no_text(name, fields)
    fields["other_fields"] = _checked_other_fields(name, fields["other_fields"])
    return fields


def _checked_other_fields(name: str, given: Any) -> dict[str, Any]:
    try:
        if not isinstance(given, Mapping):
            raise ValueError(f"girder_job_other_fields is {given!r:.200}, which is not a mapping")
        return checked_fields(given, "girder_job_other_fields")
    except ValueError as e:
        raise SubmissionError(f"{name} was not started: {e}. No job was created.", task=name) from e


def _refuse_no_text(name: str, fields: Mapping[str, Any]) -> None:
    for field_name in ("title", "type"):
        value = fields.get(field_name)
        if value is not None and not isinstance(value, str):
            raise SubmissionError(
                f"{name} was started with the {field_name} {value!r:.200}, which is not a string. "
                "No job was created.",
                task=name,
            )


def checked_options(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the execution options in ``given``, checked, as plain values."""
    chosen = {k: v for k, v in given.items() if k in OPTION_NAMES}
    try:
        options = ExecutionOptions.checked(chosen)
    except ValueError as e:
        raise SubmissionError(
            f"{name} was started with an invalid option ({e}). No job was created.",
            task=name,
        ) from e
    return {option: getattr(options, option) for option in chosen}
