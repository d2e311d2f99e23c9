"""The thread that deletes what the setting ``dask.retention`` names, in small steps."""

from __future__ import annotations

import logging
import random
import time
from datetime import datetime, timezone

from pymongo.errors import PyMongoError

from girder_dask.plugin import retention, settings
from girder_dask.plugin.retention_rules import RetentionRule
from girder_dask.utils.background import Guard, start_thread_once

__all__ = ["PASS_INTERVAL_S", "start", "sweep"]

logger = logging.getLogger(__name__)

#: Mean seconds between two passes over all jobs.
PASS_INTERVAL_S = 3_600.0

# The pause between two steps, so that a pass does not slow down anything else.
_STEP_PAUSE_S = 0.2
_THREAD_NAME = "girder-dask-retention"


def start() -> None:
    """Start the thread, once in a process."""
    start_thread_once(_THREAD_NAME, _work)


def _work() -> None:
    guard = Guard(logger, "The retention of jobs", expected=(PyMongoError,))
    while True:
        # With jitter, so that the processes of Girder do not sweep at once.
        time.sleep(PASS_INTERVAL_S * random.uniform(0.5, 1.5))  # noqa: S311 - it is no secret
        with guard:
            for rule in settings.retention():
                sweep(rule)


def sweep(rule: RetentionRule, pause_s: float = _STEP_PAUSE_S) -> int:
    """Apply a rule to all jobs; return how many it has changed or deleted."""
    now, after, deleted = datetime.now(timezone.utc), None, 0
    while True:
        step = retention.delete_step(rule, after, now)
        deleted += step.deleted
        after = step.after
        if after is None:
            break
        time.sleep(pause_s)
    if deleted:
        logger.info(
            "Retention: deleted the %s of %d jobs older than %g days",
            rule.delete if rule.delete != "jobs" else "documents",
            deleted,
            rule.days,
        )
    return deleted
