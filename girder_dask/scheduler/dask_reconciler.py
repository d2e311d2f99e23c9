"""Jobs that Dask should have and has not.

Nothing tells the scheduler of a job that was lost on the way to Dask, as with a connection of
its own that broke. The job would be QUEUED for ever. To give it to Dask again does no harm if it is
still on its way, since Dask takes a key once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from girder_dask.scheduler.job_state import Hand

__all__ = ["Missing"]

logger = logging.getLogger(__name__)


class Missing:
    """Finds jobs that Dask has not at two looks, one after the other.

    Parameters
    ----------
    hands
        The jobs in hand, by the keys under which Dask should have them.
    has
        Says whether Dask has a key.
    give
        Called with the jobs that are to be given to Dask again, under the same keys.

    Examples
    --------
    >>> from girder_dask.jobs import JobSpec
    >>> spec = JobSpec(id='5f3c', attempt=1, task='coins:count')
    >>> given = []
    >>> missing = Missing({spec.key: Hand(spec, 1, 1)}, lambda key: False, given.extend)
    >>> missing.look()
    >>> missing.look()
    >>> [hand.spec.key for hand in given]
    ['count-5f3c-1']
    """

    def __init__(
        self,
        hands: Mapping[str, Hand],
        has: Callable[[str], bool],
        give: Callable[[Sequence[Hand]], None],
    ) -> None:
        self._hands = hands
        self._has = has
        self._give = give
        self._before: set[str] = set()

    def look(self) -> None:
        """Look for them. Long after the last look: thousands of jobs may be on their way."""
        found = {
            key: hand
            for key, hand in self._hands.items()
            if hand.is_on_its_way and not self._has(key)
        }
        again = [hand for key, hand in found.items() if key in self._before]
        self._before = set(found)
        if again:
            logger.warning("Dask does not have %d jobs; they are given to it again", len(again))
            self._give(again)
