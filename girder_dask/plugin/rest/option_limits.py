"""Limits of execution options for users who may not run code of their own.

Their jobs share the cluster with those of all other users. Users who may run code there can take
any resources anyway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from girder_dask.jobs import HANDLER
from girder_dask.plugin import settings
from girder_dask.protocol.celery_message import LOCAL_QUEUE, QUEUE_RESOURCE_PREFIX
from girder_dask.protocol.messages import MapParent, Submission

__all__ = [
    "ALLOWED_OTHER_FIELDS",
    "LOCAL_QUEUE_REASON",
    "MAX_OTHER_FIELDS_CHARS",
    "MAX_RESOURCES",
    "MAX_RESOURCE_AMOUNT",
    "MAX_RESOURCE_NAME_CHARS",
    "MAX_RETRIES",
    "MAX_TIMEOUT_S",
    "MAX_TITLE_CHARS",
    "MAX_TYPE_CHARS",
    "MIN_PRIORITY",
    "find_excess",
]

#: The number of further tries of a call.
MAX_RETRIES = 20
#: The longest time limit. A call without one may run forever.
MAX_TIMEOUT_S = 30 * 24 * 3600.0
#: The lowest priority. The highest is the setting ``dask.max_priority``.
MIN_PRIORITY = -1_000
#: The number of worker resources of a call, and the amount of each.
MAX_RESOURCES = 16
MAX_RESOURCE_AMOUNT = 1e15
#: The length of the name of a resource, of a title, and of the type of a job.
MAX_RESOURCE_NAME_CHARS = 100
MAX_TITLE_CHARS = 1_000
MAX_TYPE_CHARS = 100
#: The length of ``other_fields`` as JSON. Lists of jobs contain these fields.
MAX_OTHER_FIELDS_CHARS = 64 * 1024
#: The fields that ``other_fields`` may set. ``parentId`` is a job that the user may change.
ALLOWED_OTHER_FIELDS = frozenset({"meta", "parentId"})
#: Why a call may not run where Girder's database is.
LOCAL_QUEUE_REASON = (
    "its resources are those of the queue local, whose workers have Girder's database. For users, "
    "code inside Girder starts calls there, with those that follow"
)


def find_excess(call: Submission | MapParent, *, any_field: bool = False) -> str | None:
    """Return the limit that a call or the parent of a map exceeds, as text, or None.

    Parameters
    ----------
    call
        The call or the parent.
    any_field
        Whether the call may set all fields that are not reserved, as a task may for jobs of tasks
        of its own package.
    """
    reason = _document_excess(call) or _size_excess(call)
    if reason is None and not any_field:
        reason = _name_excess(call)
    if reason is None and isinstance(call, Submission):
        reason = _run_excess(call)
    return reason


def _document_excess(call: Submission | MapParent) -> str | None:
    if call.handler not in (None, HANDLER):
        return f"its handler is {call.handler!r:.100}, where only {HANDLER!r} is possible"
    for name, most in (("title", MAX_TITLE_CHARS), ("type", MAX_TYPE_CHARS)):
        length = len(getattr(call, name))
        if length > most:
            return f"its {name} has {length:,} characters, more than the {most:,} that are possible"
    return None


def _size_excess(call: Submission | MapParent) -> str | None:
    size = len(json.dumps(dict(call.other_fields), default=str))
    if size > MAX_OTHER_FIELDS_CHARS:
        return f"its other_fields take {size:,} characters, more than {MAX_OTHER_FIELDS_CHARS:,}"
    return None


def _name_excess(call: Submission | MapParent) -> str | None:
    others = sorted(set(call.other_fields) - ALLOWED_OTHER_FIELDS)
    if others:
        return (
            f"its other_fields set {', '.join(others)[:200]}, where only "
            f"{' and '.join(sorted(ALLOWED_OTHER_FIELDS))} are possible"
        )
    return None


def _run_excess(call: Submission) -> str | None:
    if call.retries > MAX_RETRIES:
        return _above("retries", call.retries, MAX_RETRIES)
    if call.timeout is not None and call.timeout > MAX_TIMEOUT_S:
        return f"{_above('timeout', call.timeout, MAX_TIMEOUT_S)}. Without one there is no limit"
    if call.priority > settings.max_priority():
        above = _above("priority", call.priority, settings.max_priority())
        return f"{above} (Girder's setting dask.max_priority)"
    if call.priority < MIN_PRIORITY:
        return f"its priority is {call.priority:,}, below the minimum of {MIN_PRIORITY:,}"
    return _resource_excess(call.resources or {})


def _resource_excess(resources: Mapping[str, Any]) -> str | None:
    if len(resources) > MAX_RESOURCES:
        return f"its resources are {len(resources):,}, more than the {MAX_RESOURCES} possible"
    if f"{QUEUE_RESOURCE_PREFIX}{LOCAL_QUEUE}" in resources:
        return LOCAL_QUEUE_REASON
    for name, amount in resources.items():
        if len(name) > MAX_RESOURCE_NAME_CHARS:
            return (
                f"its resources have a name of {len(name):,} characters, more than "
                f"{MAX_RESOURCE_NAME_CHARS}"
            )
        if amount > MAX_RESOURCE_AMOUNT:
            return _above(f"resources: {name}", amount, MAX_RESOURCE_AMOUNT)
    return None


def _above(name: str, value: float, most: float) -> str:
    return f"its {name} is {value:,g}, more than the {most:,g} that are possible"
