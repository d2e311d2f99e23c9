"""The fields of a job document that its maker may add: ``other_fields``, ``otherFields``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import bson.json_util
from girder.api import access
from girder.exceptions import RestException

__all__ = ["CORE", "RESERVED", "refuse_forged", "reserved"]

#: What says which job it is, whose it is, who may read it, and where it stands.
CORE = frozenset(
    {
        *("_id", "userId", "access", "public", "publicFlags"),
        *("status", "timestamps", "created", "updated", "log"),
    }
)

#: What a call over REST does not set, because other parts rely on it or because it grants
#: something. Those of girder_worker name a Celery task that a cancel revokes.
RESERVED = CORE | {
    *("args", "kwargs", "handler", "parentId", "progress", "title", "type"),
    *("when", "interval", "asynchronous", "jobInfoSpec", "module", "function"),
    *("celeryTaskId", "celeryParentTaskId", "celeryQueue"),
}

#: All of our own begin so.
_OURS = "dask"


def reserved(names: Iterable[Any], among: Collection[str] = RESERVED) -> list[str]:
    """Return those of some names of fields that nobody sets from outside.

    Ours are among them, and what MongoDB would take for an operator or a path.

    >>> reserved(["meta", "_id", "dask_log", "dask.open", "$set", "access.users"])
    ['$set', '_id', 'access.users', 'dask.open', 'dask_log']
    """
    return sorted(str(name) for name in names if not _is_free(name, among))


def _is_free(name: Any, among: Collection[str]) -> bool:
    return (
        isinstance(name, str)
        and bool(name)
        and name not in among
        and not name.startswith(("$", _OURS))
        and not any(character in name for character in ".\0")
    )


@access.public  # Girder asks of handlers what it asks of routes; the route has its own rules
def refuse_forged(event: Any) -> None:
    """Refuse ``POST job`` that would write over a job, or make one look like one of ours.

    Girder's own route takes any field. With an ``_id`` it replaces the job that has it.
    Bound to what comes before that route.

    Raises
    ------
    RestException
        If its ``otherFields`` have a field that is not for a request to set.
    """
    given = event.info["params"].get("otherFields")
    try:
        # As Girder reads it.
        fields = bson.json_util.loads(given) if given else {}
    except Exception:  # noqa: BLE001 - the constructors of BSON types raise what they like
        raise RestException("Parameter otherFields must be valid JSON.") from None
    wrong = reserved(fields, CORE) if isinstance(fields, dict) else []
    if wrong:
        raise RestException(
            f"The otherFields of a new job must not set {', '.join(wrong)[:200]}. No job was made."
        )
