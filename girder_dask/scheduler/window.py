"""The window: the jobs that Dask has, and the queue of those that wait behind them.

Dask has the jobs that keep its threads busy, and few more. The others wait here in the order of
their priorities, and move up as jobs end. So the size of Dask's state does not depend on the length
of the queue. Jobs that ask for different resources have windows of their own: those that wait for a
GPU hold up no others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from distributed.collections import HeapSet

from girder_dask.protocol.messages import JobSpec

__all__ = ["Kind", "QueuedJob", "Window"]

#: The resources that a job asks for, sorted. Each kind of job has a window.
Kind = tuple[tuple[str, float], ...]

# A job goes past a window that is full of jobs with lower priorities, until the window holds this
# many times its size.
_MAX_FILLING = 4


@dataclass(eq=False, slots=True, weakref_slot=True)
class QueuedJob:
    """A job on its way to Dask.

    Attributes
    ----------
    values
        The keys of values on the cluster that the job needs, by the ids of the jobs that made them.
    priority
        Dask's priority of its task. The least goes first. Its first number is the negative priority
        of the job.
    """

    spec: JobSpec
    values: Mapping[str, str]
    priority: tuple[float, ...]

    @property
    def kind(self) -> Kind:
        """The resources that the job asks for."""
        return tuple(sorted((self.spec.resources or {}).items()))


@dataclass(slots=True)
class _KindWindow:
    """The jobs of one kind: those that Dask has, counted by priority, and those that wait."""

    waiting: HeapSet[QueuedJob] = field(
        default_factory=lambda: HeapSet[QueuedJob](key=lambda job: job.priority)
    )
    counts: Counter[float] = field(default_factory=Counter)
    size: int = 0

    def next(self, limit: float) -> QueuedJob | None:
        """Take the job that goes to Dask next, if a window of this size has room for it."""
        if not self.waiting:
            return None
        priority = self.waiting.peek().priority[0]
        if self.size >= limit:
            if self.size >= _MAX_FILLING * limit:
                return None
            if sum(n for other, n in self.counts.items() if other <= priority) >= limit:
                return None
        self.counts[priority] += 1
        self.size += 1
        return self.waiting.pop()

    def remove(self, job: QueuedJob) -> None:
        """Remove a job that Dask had."""
        priority = job.priority[0]
        self.counts[priority] -= 1
        if not self.counts[priority]:
            del self.counts[priority]
        self.size -= 1


class Window:
    """The queue of jobs for Dask, of which Dask has the first."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, _KindWindow] = {}
        self._waiting: dict[str, QueuedJob] = {}
        self._given: dict[str, QueuedJob] = {}

    @property
    def waiting(self) -> int:
        """The number of jobs that Dask does not have."""
        return len(self._waiting)

    @property
    def given(self) -> int:
        """The number of jobs that Dask has."""
        return len(self._given)

    def add(self, job: QueuedJob) -> None:
        """Add a job that waits."""
        self._waiting[job.spec.key] = job
        self._kinds.setdefault(job.kind, _KindWindow()).waiting.add(job)

    def remove(self, key: str) -> bool:
        """Remove a job that has ended or need not run. Return True if Dask had it."""
        waiting = self._waiting.pop(key, None)
        given = self._given.pop(key, None)
        job = waiting or given
        if job is None:
            return False
        window = self._kinds[job.kind]
        if waiting is not None:
            window.waiting.discard(job)
        else:
            window.remove(job)
        if not window.size and not window.waiting:
            del self._kinds[job.kind]
        return given is not None

    def take(self, size: Callable[[Kind], float]) -> list[QueuedJob]:
        """Take the jobs that Dask gets now.

        Parameters
        ----------
        size
            Returns the size of the window of a kind: how many jobs keep all its threads busy.
        """
        taken: list[QueuedJob] = []
        for kind, window in self._kinds.items():
            limit = size(kind) if window.waiting else 0
            while (job := window.next(limit)) is not None:
                self._given[job.spec.key] = self._waiting.pop(job.spec.key)
                taken.append(job)
        return taken

    def all_waiting(self) -> Iterable[str]:
        """Return the keys of all jobs that wait."""
        return self._waiting

    def waiting_kinds(self) -> list[Kind]:
        """Return the kinds of which jobs wait."""
        return [kind for kind, window in self._kinds.items() if window.waiting]

    def waiting_number(self, kind: Kind) -> int:
        """Return the number of jobs of a kind that wait."""
        return len(self._kinds[kind].waiting)

    def waiting_keys(self, kind: Kind) -> Iterable[str]:
        """Return the keys of the jobs of a kind that wait."""
        return (job.spec.key for job in self._kinds[kind].waiting)
