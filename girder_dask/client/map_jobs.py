"""The jobs of a map as a sequence, of which only the ids are held."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

from girder_dask.client.result import JobResult

__all__ = ["MapJobs"]


class MapJobs(Sequence[JobResult]):
    """The jobs of a map, in the order of the calls.

    Those of the first piece are held. Of the others, a :class:`JobResult` is made when it is used,
    so that a map of a million takes little memory.

    Parameters
    ----------
    first
        The jobs to hold.

    Examples
    --------
    >>> jobs = MapJobs([JobResult('a')])
    >>> jobs.extend(['b', 'c'])
    >>> [job.id for job in jobs], len(jobs.known())
    (['a', 'b', 'c'], 1)
    """

    def __init__(self, first: Iterable[JobResult] = ()) -> None:
        self._known = list(first)
        self._ids: list[str] = []
        self._used: weakref.WeakValueDictionary[int, JobResult] = weakref.WeakValueDictionary()

    def extend(self, ids: Iterable[str], *, keep: bool = False) -> None:
        """Add jobs by their ids. With ``keep``, they are held."""
        if keep:
            self._known += map(JobResult, ids)
        else:
            self._ids += ids

    def known(self) -> list[JobResult]:
        """Return the jobs that are held, which are the first."""
        return self._known

    def __len__(self) -> int:
        return len(self._known) + len(self._ids)

    @overload
    def __getitem__(self, index: int) -> JobResult: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[JobResult]: ...
    def __getitem__(self, index: int | slice) -> JobResult | Sequence[JobResult]:
        if isinstance(index, slice):
            return tuple(self._at(n) for n in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._at(index % len(self))

    def _at(self, index: int) -> JobResult:
        if index < len(self._known):
            return self._known[index]
        job = self._used.get(index)
        if job is None:
            job = self._used[index] = JobResult(self._ids[index - len(self._known)])
        return job

    def __iter__(self) -> Iterator[JobResult]:
        return (self._at(n) for n in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._known, self._ids)

    def __repr__(self) -> str:
        return f"<MapJobs of {len(self):,} jobs>"


def _rebuild(known: list[JobResult], ids: list[str]) -> MapJobs:
    jobs = MapJobs(known)
    jobs.extend(ids)
    return jobs
