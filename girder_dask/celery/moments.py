"""Times in the headers of messages."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

__all__ = ["timestamp_of"]


def timestamp_of(text: Any) -> float | None:
    """Return a time of Celery in seconds since the epoch, None for what is no text.

    A time without a zone is in UTC, as Celery takes it.

    Raises
    ------
    ValueError
        If the text is no time.

    Examples
    --------
    >>> timestamp_of("2026-11-30T00:00:00"), timestamp_of(None)
    (1795996800.0, None)
    """
    if not isinstance(text, str):
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return moment.timestamp()
