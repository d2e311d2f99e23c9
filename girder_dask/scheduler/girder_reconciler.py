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

__all__ = ["GirderReconciler", "Held"]

#: The id of a job, and its attempt and sequence as Girder has them.
Held = tuple[str, int, int]


class GirderReconciler:
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
    >>> audit = GirderReconciler({'a', 'b'}.__contains__, interval=60.0)
    >>> audit.after, audit.lacking()
    ('', [])
    >>> audit.hear([('a', 1, 5), ('c', 2, 7)])
    >>> audit.after, audit.lacking()
    ('c', [('c', 2, 7)])
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
        self._doubtful: list[Held] = []

    @property
    def after(self) -> str | None:
        """The id after which Girder's next page of jobs begins, None while there is no turn."""
        return self._last if self._clock() >= self._begin else None

    def lacking(self) -> list[Held]:
        """Return those of the last page that the scheduler does not have now."""
        return [held for held in self._doubtful if not self._has(held[0])]

    def hear(self, page: Sequence[Held] | None) -> None:
        """Take in a page. An empty one ends a turn, and None is no page."""
        self._doubtful = []
        if page is None:
            return
        self._doubtful = [(job_id, attempt, sequence) for job_id, attempt, sequence in page]
        self._doubtful = self.lacking()
        self._last = max((job_id for job_id, _, _ in page), default="")
        if not page:
            self._begin = self._clock() + self._interval
