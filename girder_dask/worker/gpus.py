"""Allocation of GPUs to the runs on a worker.

A Dask worker that was started with ``--resources GPU=2`` counts GPUs, but does not tell a
task which ones to use. This module gives each run ids of its own, and ``CUDA_VISIBLE_DEVICES``
exposes only these. The variable belongs to a process, so only one run at a time can set it in the
worker's process; others need a process of their own.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["VARIABLE", "GpuAllocator", "environment", "exposed", "visible_ids"]

#: The environment variable that CUDA reads.
VARIABLE = "CUDA_VISIBLE_DEVICES"

# The worker's own value while a run sets the variable, in a tuple: the value may be None.
_own: tuple[str | None] | None = None
_lock = threading.Lock()


def _own_value() -> str | None:
    return os.environ.get(VARIABLE) if _own is None else _own[0]


def visible_ids(total: float) -> list[str]:
    """Return the ids of the GPUs that this process may use.

    Parameters
    ----------
    total
        Number of GPUs according to Dask, for a process without the variable.

    Examples
    --------
    >>> os.environ.pop(VARIABLE, None) and None
    >>> visible_ids(2)
    ['0', '1']
    """
    value = _own_value()
    if value is None:
        return [str(i) for i in range(int(total))]
    ids = [each.strip() for each in value.split(",")]
    # CUDA reads up to the first id that names no GPU.
    end = next((i for i, each in enumerate(ids) if each in ("", "-1", "NoDevFiles")), len(ids))
    return ids[:end]


class GpuAllocator:
    """Allocator of the GPUs of one worker.

    Parameters
    ----------
    ids
        Their names in ``CUDA_VISIBLE_DEVICES``.

    Examples
    --------
    >>> gpus = GpuAllocator(['0', '1', '2'])
    >>> with gpus.allocated(2) as first, gpus.allocated(1) as second:
    ...     print(first, second)
    ('0', '1') ('2',)
    """

    def __init__(self, ids: Sequence[str] = ()) -> None:
        self._load = dict.fromkeys(ids, 0.0)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def allocated(self, count: float) -> Iterator[tuple[str, ...]]:
        """Allocate ``count`` GPUs, exclusively. Less than one is a share of one GPU.

        Dask never starts tasks that ask for more GPUs than there are.
        """
        share = min(count, 1.0)
        with self._lock:
            ids = self._choose(count)
            for each in ids:
                self._load[each] += share
        try:
            yield ids
        finally:
            with self._lock:
                for each in ids:
                    self._load[each] = max(0.0, self._load[each] - share)

    def _choose(self, count: float) -> tuple[str, ...]:
        if count <= 0:
            return ()
        if count < 1:  # share a GPU, so that whole ones stay free
            fitting = [i for i, load in self._load.items() if load + count <= 1 + 1e-9]
            if fitting:
                return (max(fitting, key=self._load.__getitem__),)
        wanted = math.ceil(count - 1e-9)
        return tuple(sorted(self._load, key=self._load.__getitem__)[:wanted])


@contextlib.contextmanager
def exposed(ids: Sequence[str]) -> Iterator[bool]:
    """Expose only these GPUs to the whole process. Yield False if another run already does.

    Examples
    --------
    >>> with exposed(['1']) as first, exposed(['0']) as second:
    ...     print(first, second, os.environ[VARIABLE])
    True False 1
    """
    global _own
    with _lock:
        free = _own is None
        if free:
            _own = (os.environ.get(VARIABLE),)
            os.environ[VARIABLE] = ",".join(ids)
    try:
        yield free
    finally:
        if free:
            with _lock:
                value, _own = _own_value(), None
                if value is None:
                    os.environ.pop(VARIABLE, None)
                else:
                    os.environ[VARIABLE] = value


def environment(ids: Sequence[str]) -> Mapping[str, str]:
    """Return the environment variables of a task's own process, with these GPUs exposed."""
    with _lock:
        variables = dict(os.environ)
        value = ",".join(ids) if ids else _own_value()
    if value is None:
        variables.pop(VARIABLE, None)
    else:
        variables[VARIABLE] = value
    return variables
