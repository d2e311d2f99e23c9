"""Jobs that Dask should have and has not.

Nothing tells the scheduler of a job that was lost on the way to Dask, as with a connection of
its own that broke. The job would be QUEUED for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from girder_dask.hand import Hand

__all__ = ["Missing"]

logger = logging.getLogger(__name__)


class Missing:
    """Finds jobs that Dask has not at two looks, one after the other.

    Parameters
    ----------
    hands
        The jobs in hand, by the keys under which Dask should have them.
    has
        Says whether Dask has a key, or is about to be given it.
    forgotten
        Called with a key that Dask has not.

    Examples
    --------
    >>> from girder_dask.jobs import JobSpec
    >>> spec = JobSpec(id='5f3c', attempt=1, task='coins:count')
    >>> missing = Missing({spec.key: Hand(spec, 1, 1)}, lambda key: False, print)
    >>> missing.look()
    >>> missing.look()
    count-5f3c-1
    """

    def __init__(
        self,
        hands: Mapping[str, Hand],
        has: Callable[[str], bool],
        forgotten: Callable[[str], None],
    ) -> None:
        self._hands = hands
        self._has = has
        self._forgotten = forgotten
        self._before: set[str] = set()

    def look(self) -> None:
        """Look for them. Long after the last look: thousands of jobs may be on their way."""
        found = {
            key for key, hand in self._hands.items() if hand.is_with_dask and not self._has(key)
        }
        again, self._before = found & self._before, found - self._before
        for key in again:
            logger.warning("Dask does not have %s, which it was given; it is given again", key)
            self._forgotten(key)
