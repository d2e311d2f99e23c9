"""Tasks that make values, and tasks that need those of others."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from girder_dask import task

_DEADLINE = 120.0


@task
def make_bytes(count: int, diary: str | None = None) -> bytes:
    """Return so many bytes, and write a line into the file ``diary``."""
    if diary is not None:
        with Path(diary).open("a") as f:
            f.write("made\n")
    return bytes(count)


@task
def sizes(*values: Any, **named: Any) -> Any:
    """Return the arguments with the lengths of bytes in their place."""
    return _sizes([*values, named])


def _sizes(value: Any) -> Any:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return {k: _sizes(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sizes(v) for v in value]
    return value


@task
def meet(value: bytes, directory: str, count: int) -> dict[str, Any]:
    """Wait until ``count`` runs of this are in ``directory``; return the worker and the size."""
    import distributed

    (Path(directory) / uuid.uuid4().hex).touch()
    _until(lambda: len(list(Path(directory).iterdir())) >= count)
    return {"worker": distributed.get_worker().address, "size": len(value)}


@task
def hold(path: str) -> int:
    """Wait until there is a file, and return 1."""
    _until(Path(path).exists)
    return 1


def _until(condition: Any) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("What this waits for did not happen.")
        time.sleep(0.02)


@task
def add_one(n: int) -> int:
    """Return one more."""
    return n + 1


@task(retries=1)
def fails_once(path: str) -> int:
    """Raise a ValueError when there is no file at ``path``, and make one; else return 7."""
    if Path(path).exists():
        return 7
    Path(path).touch()
    raise ValueError("the first try")
