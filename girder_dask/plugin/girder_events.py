"""Girder's events: the names of this plugin's handlers, and those of other plugins."""

from __future__ import annotations

from typing import Any

from girder import events

__all__ = ["EVENT_HANDLER", "PARENT_HANDLER", "WORKER_HANDLER", "is_bound", "trigger_others"]

#: The name under which this plugin binds events.
EVENT_HANDLER = "dask"

#: The name of its second handler of an event: Girder keeps one of a name.
PARENT_HANDLER = f"{EVENT_HANDLER}_parents"

#: The name under which girder_worker's plugin binds events. When a job is saved, it gives the job a
#: token and a parent, for workers of Celery.
WORKER_HANDLER = "worker"

_NOT_OTHERS = frozenset({EVENT_HANDLER, PARENT_HANDLER, WORKER_HANDLER})


def is_bound(name: str, *, besides: str | None = None) -> bool:
    """Return True if an event has a handler other than the one named ``besides``."""
    handlers = events._mapping.get(name)  # noqa: SLF001 - Girder has no other way to ask
    return bool(handlers) and any(handler != besides for handler in handlers)


def trigger_others(name: str, info: Any) -> bool:
    """Call the handlers of other plugins for a new job. Return True if one prevents the default.

    Those of girder_worker's plugin are left out: they take some requests to the database for each
    job, and jobs of this plugin need nothing of it.
    """
    event = events.Event(name, info)
    handlers = events._mapping.get(name) or {}  # noqa: SLF001 - Girder can only call all of them
    for handler_name, handler in list(handlers.items()):
        if handler_name not in _NOT_OTHERS:
            event.currentHandlerName = handler_name
            handler(event)
            if not event.propagate:
                break
    return bool(event.defaultPrevented)
