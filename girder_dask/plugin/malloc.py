"""Memory that a large request has needed, given back to the system.

The C library keeps what was freed, up to as much as was ever needed at once. A process of Girder
that has recorded 20,000 jobs in one request would stay tens of megabytes larger for it. A lower
``MALLOC_TRIM_THRESHOLD_`` has the same effect, but takes a third more time for uploads.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from typing import Any

from girder_dask.utils.background import Guard

__all__ = ["trim_later"]

# Seconds until it is given back: the answer to the request is sent by then.
_TRIM_DELAY_S = 5.0

logger = logging.getLogger(__name__)

_guard = Guard(logger, "Giving memory back to the system")
_lock = threading.Lock()
_timer: threading.Timer | None = None


def trim_later() -> None:
    """Give free memory back to the system, when this has not been asked for for a moment."""
    global _timer
    trim: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:  # another C library than glibc
        return
    with _lock:
        if _timer is not None:
            _timer.cancel()
        _timer = threading.Timer(_TRIM_DELAY_S, _trim, [trim])
        _timer.daemon = True
        _timer.start()


def _trim(trim: Any) -> None:
    with _guard:
        trim(0)
