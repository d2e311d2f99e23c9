"""The thread that deletes tokens whose job has ended.

Such tokens are left behind only if a process dies between two steps, see
:mod:`girder_dask.plugin.store.tokens`. A process of Girder looks for them when it starts, since the
previous one may have died, and then periodically.
"""

from __future__ import annotations

import logging
import random
import time
from datetime import datetime, timezone

from pymongo.errors import PyMongoError

from girder_dask.plugin.store import tokens
from girder_dask.utils.background import Guard, start_thread_once

__all__ = ["SWEEP_INTERVAL_S", "start"]

logger = logging.getLogger(__name__)

#: Mean seconds between two sweeps.
SWEEP_INTERVAL_S = 600.0

_THREAD_NAME = "girder-dask-sweeper"


def start() -> None:
    """Start the thread, once in a process."""
    start_thread_once(_THREAD_NAME, _work)


def _work() -> None:
    what = "The sweep of tokens of ended jobs"
    guard = Guard(logger, what, expected=(PyMongoError,))
    while True:
        with guard:
            if count := tokens.sweep(datetime.now(timezone.utc)):
                logger.warning("Deleted %d tokens of jobs that have ended", count)
        # With jitter, so that the processes of Girder do not sweep at once.
        time.sleep(SWEEP_INTERVAL_S * random.uniform(0.5, 1.5))  # noqa: S311 - it is no secret
