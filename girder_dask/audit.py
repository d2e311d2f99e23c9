"""Whether a scheduler has the jobs that Girder takes it to have.

A scheduler lets go of a job when Girder has acknowledged its end. A database that crashes may
have forgotten what it acknowledged in the last moment before, and then has the job at work for
ever. So Girder is asked, a page at a time, which jobs it takes this scheduler to have, and told
which of them it has not. Girder goes by that only for jobs that are still as they were, and makes
new attempts of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

__all__ = ["Audit"]


class Audit:
    """Compares, in turns, what Girder takes a scheduler to have with what it has.

    Parameters
    ----------
    has
        Says whether the scheduler has the job with an id.
    interval
        Seconds between the end of one turn and the beginning of the next.
    clock
        Seconds that only grow.

    Examples
    --------
    >>> audit = Audit({'a', 'b'}.__contains__, interval=60.0)
    >>> audit.after, audit.lacking()
    ('', [])
    >>> audit.hear(['a', 'c'])
    >>> audit.after, audit.lacking()
    ('c', ['c'])
    """

    def __init__(
        self,
        has: Callable[[str], bool],
        *,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._has = has
        self._interval = interval
        self._clock = clock
        self._last = ""
        self._begin = clock()
        self._doubtful: list[str] = []

    @property
    def after(self) -> str | None:
        """The id after which Girder's next page of jobs begins, None while there is no turn."""
        return self._last if self._clock() >= self._begin else None

    def lacking(self) -> list[str]:
        """Return the ids of the last page of which the scheduler does not have the jobs now."""
        return [job_id for job_id in self._doubtful if not self._has(job_id)]

    def hear(self, page: Sequence[str] | None) -> None:
        """Take in the ids of a page. An empty one ends a turn, and None is no page."""
        self._doubtful = []
        if page is None:
            return
        self._doubtful = list(page)
        self._doubtful = self.lacking()
        self._last = max(page, default="")
        if not page:
            self._begin = self._clock() + self._interval
