"""What a job sets of its process's state for itself alone.

Several jobs run at once in one process. What one of them assigns to ``sys.stdout`` or sets in
``logging`` is kept here, with its log, and seen by the code of this job only: its thread, and
the threads and pools that it starts. A ``ContextVar`` would not do, as threads that run already
would miss what is set later.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["JobLocalState"]

logger = logging.getLogger(__name__)


class JobLocalState(dict[Hashable, Any]):
    """The values that a job has set, under names that say what they stand for.

    It is the ``own`` of a :class:`~girder_dask.worker.job_log.log.JobLog`. Threads that outlive
    their job go on with it, empty at first, so that they change nothing for others either.

    Examples
    --------
    >>> own = Overlay()
    >>> own["answer"] = 42
    >>> own.at_end(lambda: print("put back"))
    >>> own.end()
    put back
    >>> own
    {}
    """

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: list[Callable[[], object]] = []

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` at the end of the run, in the job's own thread, the newest first."""
        self._callbacks.append(callback)

    def end(self) -> None:
        """Call what waits for the end, and drop all values. Log what fails."""
        while self._callbacks:
            callback = self._callbacks.pop()
            try:
                callback()
            except Exception:
                logger.exception("What a job has set could not be put back")
        self.clear()
