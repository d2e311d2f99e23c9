"""Fields of job documents that requests must not set, and numbers that JSON does not have."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import bson.json_util
from girder.api import access
from girder.exceptions import RestException, ValidationException

__all__ = [
    "CORE_FIELDS",
    "RESERVED_FIELDS",
    "find_non_finite",
    "find_reserved",
    "refuse_non_finite_numbers",
    "refuse_reserved_fields",
]

#: The fields with the id, the owner, the access and the state of a job.
CORE_FIELDS = frozenset(
    {
        *("_id", "userId", "access", "public", "publicFlags"),
        *("status", "timestamps", "created", "updated", "log"),
    }
)

#: The fields that a call over REST must not set, since other parts rely on them or they grant
#: rights. Those of girder_worker name a Celery task that a cancel revokes.
RESERVED_FIELDS = CORE_FIELDS | {
    *("args", "kwargs", "handler", "parentId", "progress", "title", "type"),
    *("when", "interval", "asynchronous", "jobInfoSpec", "module", "function"),
    *("celeryTaskId", "celeryParentTaskId", "celeryQueue"),
}

#: The prefix of this package's own fields.
_OWN_PREFIX = "dask"


def find_reserved(names: Iterable[Any], among: Collection[str] = RESERVED_FIELDS) -> list[str]:
    """Return the reserved names among some names of fields.

    They include this package's own fields, and names that MongoDB would take for an operator or a
    path.

    >>> find_reserved(["meta", "_id", "dask_log", "dask.open", "$set", "access.users"])
    ['$set', '_id', 'access.users', 'dask.open', 'dask_log']
    """
    return sorted(str(name) for name in names if not _is_free(name, among))


def _is_free(name: Any, among: Collection[str]) -> bool:
    return (
        isinstance(name, str)
        and bool(name)
        and name not in among
        and not name.startswith(("$", _OWN_PREFIX))
        and not any(character in name for character in ".\0")
    )


def find_non_finite(value: Any, path: str) -> str | None:
    """Return the path of a number in a value that JSON does not have, or None.

    >>> find_non_finite({"n": [1, float("nan")]}, "meta")
    "meta['n'][1]"
    """
    left = [(path, value)]
    while left:
        where, found = left.pop()
        if isinstance(found, float) and not math.isfinite(found):
            return where
        if isinstance(found, Mapping):
            left += [(f"{where}[{key!r:.100}]", inner) for key, inner in found.items()]
        elif isinstance(found, (list, tuple)):
            left += [(f"{where}[{n}]", inner) for n, inner in enumerate(found)]
    return None


def refuse_non_finite_numbers(event: Any) -> None:
    """Refuse an update of a job with a number that is not finite.

    Girder answers with strict JSON, so one such number would make each list with this job fail with
    the status 500. Bound to the event before ``Job().updateJob``, which Girder's ``PUT job/:id``
    and other plugins call.

    Raises
    ------
    ValidationException
        If a number is not finite.
    """
    params = event.info["params"]
    for name in ("progressTotal", "progressCurrent", "otherFields"):
        where = find_non_finite(params.get(name), name)
        if where is not None:
            raise ValidationException(
                f"{where} is not a finite number. Job {event.info['job']['_id']} was not changed.",
                name,
            )


@access.public  # Girder requires a rule of handlers too; the route has its own
def refuse_reserved_fields(event: Any) -> None:
    """Refuse a ``POST job`` that would overwrite a job or create a malformed one.

    Girder's route takes any field. With an ``_id`` it replaces the job with that id. Bound to the
    event before that route.

    Raises
    ------
    RestException
        If ``otherFields`` has a reserved field, or a number is not finite.
    """
    for name in ("args", "kwargs", "otherFields"):
        given = _read(event.info["params"].get(name), name)
        wrong = (
            find_reserved(given, CORE_FIELDS)
            if name == "otherFields" and isinstance(given, dict)
            else []
        )
        if wrong:
            raise RestException(
                f"The otherFields of a new job must not set {', '.join(wrong)[:200]}. No job was "
                "created."
            )
        where = find_non_finite(given, name)
        if where is not None:
            raise RestException(f"{where} is not a finite number. No job was created.")


def _read(given: Any, name: str) -> Any:
    try:
        # Girder parses them in the same way.
        return bson.json_util.loads(given) if given else {}
    except Exception:  # noqa: BLE001 - the constructors of BSON types raise errors of many kinds
        raise RestException(f"Parameter {name} must be valid JSON.") from None
