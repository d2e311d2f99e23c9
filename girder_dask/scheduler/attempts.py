"""The attempts of the jobs in hand. The number of each is used for one run, and for no other.

From when Dask places a job on a worker, a run may have begun there with its number. Girder
gives the first number with the job. The scheduler counts on from there, and no run with such a
number calls its function before Girder has heard of it: if this scheduler is lost, the next one
counts on from what Girder has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from girder_dask.jobs import JobStatus
from girder_dask.scheduler.cluster import Cluster
from girder_dask.scheduler.job_state import Hand

__all__ = ["Attempts"]


class Attempts:
    """Begins attempts and numbers them.

    Parameters
    ----------
    by_id, by_key
        The jobs in hand, by their ids and by the keys under which Dask has them.
    cluster
        Dask.
    say
        Records something of a job: its state, or a text for its log.
    """

    def __init__(
        self,
        by_id: Mapping[str, Hand],
        by_key: dict[str, Hand],
        cluster: Cluster,
        say: Callable[..., None],
    ) -> None:
        self._by_id = by_id
        self._by_key = by_key
        self._cluster = cluster
        self._say = say

    def next(self, hand: Hand, why: str) -> None:
        """Hear the present run of a job no more, and begin another attempt."""
        hand.close_run()
        self._cluster.renumber(hand.spec.key, hand.attempt)
        self._say(hand, status=int(JobStatus.QUEUED), log=f"{why} as attempt {hand.attempt}.\n")

    def take_fresh_key(self, hand: Hand) -> None:
        """Leave the present key to Dask; the next run has another one."""
        self._by_key.pop(hand.spec.key, None)
        self._cluster.drop([hand.spec.key])
        hand.spec = replace(hand.spec, attempt=hand.attempt)
        hand.ended_on = hand.nbytes = None
        self._by_key[hand.spec.key] = hand

    def heard(self, job_id: str, attempt: int) -> None:
        """Take note that Girder has heard of an attempt."""
        hand = self._by_id.get(job_id)
        if hand is not None:
            hand.known = max(hand.known, attempt)

    def may_begin(self, key: str, attempt: int) -> bool | None:
        """Say whether a run may call its function; None while Girder has not heard of it."""
        hand = self._by_key.get(key)
        if hand is None or hand.told or hand.canceled or hand.attempt != attempt:
            return False
        return True if hand.known >= attempt else None
