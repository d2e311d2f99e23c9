"""Girder's events: the name of this plugin's handlers, and a check for other handlers."""

from __future__ import annotations

from girder import events

__all__ = ["EVENT_HANDLER", "is_bound"]

#: The name under which this plugin binds events.
EVENT_HANDLER = "dask"


def is_bound(name: str, *, besides: str | None = None) -> bool:
    """Return True if an event has a handler other than the one named ``besides``."""
    handlers = events._mapping.get(name)  # noqa: SLF001 - Girder has no other way to ask
    return bool(handlers) and any(handler != besides for handler in handlers)
