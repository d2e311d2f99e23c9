"""How much those may ask for who may not run code of their own.

Their jobs share the cluster with everybody else's. Those who may run code there could take
what they like in any case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from girder_dask.jobs import HANDLER
from girder_dask.plugin import settings
from girder_dask.protocol.messages import MapParent, Submission

__all__ = [
    "FIELDS",
    "LEAST_PRIORITY",
    "MOST_AMOUNT",
    "MOST_FIELDS",
    "MOST_NAME",
    "MOST_RESOURCES",
    "MOST_RETRIES",
    "MOST_TIMEOUT",
    "MOST_TITLE",
    "MOST_TYPE",
    "refusal",
]

#: How many more times a call is tried.
MOST_RETRIES = 20
#: Seconds of a time limit. A call without one may run for as long as it likes.
MOST_TIMEOUT = 30 * 24 * 3600.0
#: The lowest priority. The highest is a setting, by default that of a call that names none.
LEAST_PRIORITY = -1_000
#: How many resources of workers a call needs, and how much of one.
MOST_RESOURCES = 16
MOST_AMOUNT = 1e15
#: Characters of the name of a resource, of a title, and of the type of a job.
MOST_NAME = 100
MOST_TITLE = 1_000
MOST_TYPE = 100
#: Characters of all that ``other_fields`` sets, as JSON: lists of jobs have it.
MOST_FIELDS = 64 * 1024
#: The fields that ``other_fields`` sets. ``parentId`` names a job that they may change.
FIELDS = frozenset({"meta", "parentId"})


def refusal(call: Submission | MapParent, *, any_field: bool = False) -> str | None:
    """Say what a call, or the parent of a map, asks too much for; None if it does not.

    Parameters
    ----------
    any_field
        Whether it may set any field of its job that is not reserved: a task of a package names
        such fields for the jobs that it starts.
    """
    reason = _of_document(call) or _of_fields(call)
    if reason is None and not any_field:
        reason = _of_names(call)
    if reason is None and isinstance(call, Submission):
        reason = _of_run(call)
    return reason


def _of_document(call: Submission | MapParent) -> str | None:
    if call.handler not in (None, HANDLER):
        return f"its handler is {call.handler!r:.100}, where only {HANDLER!r} is possible"
    for name, most in (("title", MOST_TITLE), ("type", MOST_TYPE)):
        length = len(getattr(call, name))
        if length > most:
            return f"its {name} has {length:,} characters, more than the {most:,} that are possible"
    return None


def _of_fields(call: Submission | MapParent) -> str | None:
    size = len(json.dumps(dict(call.other_fields), default=str))
    if size > MOST_FIELDS:
        return f"its other_fields take {size:,} characters, more than {MOST_FIELDS:,}"
    return None


def _of_names(call: Submission | MapParent) -> str | None:
    others = sorted(set(call.other_fields) - FIELDS)
    if others:
        return (
            f"its other_fields set {', '.join(others)[:200]}, where only "
            f"{' and '.join(sorted(FIELDS))} are possible"
        )
    return None


def _of_run(call: Submission) -> str | None:
    if call.retries > MOST_RETRIES:
        return _above("retries", call.retries, MOST_RETRIES)
    if call.timeout is not None and call.timeout > MOST_TIMEOUT:
        return f"{_above('timeout', call.timeout, MOST_TIMEOUT)}. Without one there is no limit"
    if call.priority > settings.max_priority():
        above = _above("priority", call.priority, settings.max_priority())
        return f"{above} (Girder's setting dask.max_priority)"
    if call.priority < LEAST_PRIORITY:
        return f"its priority is {call.priority:,}, less than the least, {LEAST_PRIORITY:,}"
    return _of_resources(call.resources or {})


def _of_resources(resources: Mapping[str, Any]) -> str | None:
    if len(resources) > MOST_RESOURCES:
        return f"its resources are {len(resources):,}, more than the {MOST_RESOURCES} possible"
    for name, amount in resources.items():
        if len(name) > MOST_NAME:
            return f"its resources have a name of {len(name):,} characters, more than {MOST_NAME}"
        if amount > MOST_AMOUNT:
            return _above(f"resources: {name}", amount, MOST_AMOUNT)
    return None


def _above(name: str, value: float, most: float) -> str:
    return f"its {name} is {value:,g}, more than the {most:,g} that are possible"
