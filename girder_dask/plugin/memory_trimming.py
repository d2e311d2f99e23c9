"""Return of free memory to the system after large requests, by ``malloc_trim``.

The C library keeps freed memory. After a request that recorded 20,000 jobs, a process of Girder
would stay tens of megabytes larger. A lower ``MALLOC_TRIM_THRESHOLD_`` has the same effect, but
slows uploads down by a third.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from typing import Any

from girder_dask.utils.background import Guard

__all__ = ["trim_later"]

# The answer to the request is sent by then.
_TRIM_DELAY_S = 5.0

logger = logging.getLogger(__name__)

_guard = Guard(logger, "The return of free memory to the system")
_lock = threading.Lock()
_timer: threading.Timer | None = None


def trim_later() -> None:
    """Return free memory to the system a few seconds after the last call."""
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
