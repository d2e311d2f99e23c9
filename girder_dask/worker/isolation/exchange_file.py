"""The unnamed file that takes a call to the process of a task, and its outcome back.

Both sides have it open, one writes at a time, and each write replaces the contents.
"""

from __future__ import annotations

import os
import pickle
from typing import Any, BinaryIO

from girder_dask.protocol.error_text import summary
from girder_dask.protocol.payload import Unpicklable
from girder_dask.worker.failures import Failure

__all__ = ["read", "read_failure", "read_value", "write", "write_failure", "write_value"]

_VALUE, _UNPICKLABLE, _FAILURE = "value", "unpicklable", "failure"


def read(fd: int) -> Any:
    """Return the value that the other side has written with :func:`write`."""
    with _open_for_reading(fd) as file:
        return pickle.load(file)


def write(fd: int, value: Any) -> None:
    """Write a value, even of a class that the other side cannot import."""
    import cloudpickle

    with _open_for_writing(fd) as file:
        cloudpickle.dump(value, file)


def read_failure(fd: int) -> Failure | None:
    """Return the failure of the function, None if it did not fail."""
    kind, failure = read(fd)
    return failure if kind == _FAILURE else None


def read_value(fd: int) -> Any:
    """Return the value of the function, or ``Unpicklable`` if it could not be pickled."""
    with _open_for_reading(fd) as file:
        kind, reason = pickle.load(file)
        return Unpicklable(reason) if kind == _UNPICKLABLE else pickle.load(file)


def write_failure(fd: int, failure: Failure) -> None:
    """Write the failure of the function."""
    with _open_for_writing(fd) as file:
        pickle.dump((_FAILURE, failure), file)


def write_value(fd: int, value: Any) -> None:
    """Write the value of the function, or the reason why it cannot be pickled."""
    import cloudpickle

    try:
        with _open_for_writing(fd) as file:
            pickle.dump((_VALUE, None), file)
            cloudpickle.dump(value, file)
    except BaseException as e:  # noqa: BLE001 - a __reduce__ may raise anything
        reason = f"it cannot be pickled ({summary(e)})"
        with _open_for_writing(fd) as file:
            pickle.dump((_UNPICKLABLE, reason), file)


def _open_for_reading(fd: int) -> BinaryIO:
    os.lseek(fd, 0, os.SEEK_SET)  # both sides share the position
    return open(fd, "rb", closefd=False)


def _open_for_writing(fd: int) -> BinaryIO:
    os.ftruncate(fd, 0)
    os.lseek(fd, 0, os.SEEK_SET)
    return open(fd, "wb", closefd=False)
