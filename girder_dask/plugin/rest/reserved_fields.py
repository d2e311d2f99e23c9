"""What Girder's own routes and other plugins may put into a job document, and what they may not."""

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

#: What says which job it is, whose it is, who may read it, and where it stands.
CORE_FIELDS = frozenset(
    {
        *("_id", "userId", "access", "public", "publicFlags"),
        *("status", "timestamps", "created", "updated", "log"),
    }
)

#: What a call over REST does not set, because other parts rely on it or because it grants
#: something. Those of girder_worker name a Celery task that a cancel revokes.
RESERVED_FIELDS = CORE_FIELDS | {
    *("args", "kwargs", "handler", "parentId", "progress", "title", "type"),
    *("when", "interval", "asynchronous", "jobInfoSpec", "module", "function"),
    *("celeryTaskId", "celeryParentTaskId", "celeryQueue"),
}

#: All of our own begin so.
_OWN_PREFIX = "dask"


def find_reserved(names: Iterable[Any], among: Collection[str] = RESERVED_FIELDS) -> list[str]:
    """Return those of some names of fields that nobody sets from outside.

    Ours are among them, and what MongoDB would take for an operator or a path.

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
    """Return where in a value a number is that JSON does not have, None if there is none.

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
    """Refuse an update of a job after which Girder could not send its document.

    Girder answers with strict JSON, so one such number would make every list with this job a 500.
    Bound to what comes before ``Job().updateJob``, whose callers are Girder's own ``PUT job/:id``
    and other plugins.

    Raises
    ------
    ValidationException
        If a number of it is not finite.
    """
    params = event.info["params"]
    for name in ("progressTotal", "progressCurrent", "otherFields"):
        where = find_non_finite(params.get(name), name)
        if where is not None:
            raise ValidationException(
                f"{where} is not a finite number. Job {event.info['job']['_id']} was not changed.",
                name,
            )


@access.public  # Girder asks of handlers what it asks of routes; the route has its own rules
def refuse_reserved_fields(event: Any) -> None:
    """Refuse ``POST job`` that would write over a job, or make one that is not as it should be.

    Girder's own route takes any field. With an ``_id`` it replaces the job that has it.
    Bound to what comes before that route.

    Raises
    ------
    RestException
        If its ``otherFields`` have a field that is not for a request to set, or if a number in it
        is not finite.
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
                "made."
            )
        where = find_non_finite(given, name)
        if where is not None:
            raise RestException(f"{where} is not a finite number. No job was made.")


def _read(given: Any, name: str) -> Any:
    try:
        # As Girder reads it.
        return bson.json_util.loads(given) if given else {}
    except Exception:  # noqa: BLE001 - the constructors of BSON types raise what they like
        raise RestException(f"Parameter {name} must be valid JSON.") from None
