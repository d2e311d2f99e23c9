"""Process state that a job has set for itself alone.

Several jobs run at once in one process. A value that one of them assigns to ``sys.stdout`` or sets
in ``logging`` is kept here, with its log, and only the code of this job sees it: its thread, and
the threads and pools that it starts. A ``ContextVar`` would not do: threads that already run
would miss later changes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["JobLocalState"]

logger = logging.getLogger(__name__)


class JobLocalState(dict[Hashable, Any]):
    """Values that a job has set, by the names of what they replace.

    Each :class:`~girder_dask.worker.job_log.log.JobLog` has one. Threads that outlive their job
    continue with an emptied one, so that they change nothing for others either.

    Examples
    --------
    >>> state = JobLocalState()
    >>> state["answer"] = 42
    >>> state.at_end(lambda: print("restored"))
    >>> state.end()
    restored
    >>> state
    {}
    """

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: list[Callable[[], object]] = []

    def at_end(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called at the end of the run, in the job's own thread, newest first."""
        self._callbacks.append(callback)

    def end(self) -> None:
        """Call the registered functions, and drop all values. Failures are logged."""
        while self._callbacks:
            callback = self._callbacks.pop()
            try:
                callback()
            except Exception:
                logger.exception("State that a job has changed cannot be restored")
        self.clear()
