"""Tasks that the tests and the examples of the documentation run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from girder_dask import task
from my_worker_tasks.endings import exits, fails, interrupts, slow
from my_worker_tasks.files import file_size, make_files
from my_worker_tasks.following import follows, leads
from my_worker_tasks.isolated import parents, process, speaks, starts_children, which_gpus
from my_worker_tasks.output import chatty, warns, writes_bytes
from my_worker_tasks.steady import does, steady
from my_worker_tasks.stubborn import breeds, frozen
from my_worker_tasks.surroundings import env
from my_worker_tasks.tallies import tally
from my_worker_tasks.values import add_one, fails_once, hold, make_bytes, meet, sizes
from my_worker_tasks.witness import witness

__all__ = [
    "add_one",
    "breeds",
    "chatty",
    "does",
    "env",
    "exits",
    "fails",
    "fails_once",
    "file_size",
    "follows",
    "frozen",
    "hold",
    "interrupts",
    "leads",
    "make_bytes",
    "make_files",
    "meet",
    "my_task",
    "noop",
    "parents",
    "process",
    "sizes",
    "slow",
    "speaks",
    "starts_children",
    "steady",
    "tally",
    "warns",
    "which_gpus",
    "witness",
    "writes_bytes",
]


@task
def my_task(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Print the arguments and return them.

    Of ``input_file``, a path, the returned ``kwargs`` hold a description in its place: its
    ``size`` in bytes and the ``sha256`` of its content.
    """
    for n, value in enumerate(args, 1):
        print(f"arg{n} is {value!r}")
    received = dict(kwargs)
    if "input_file" in received:
        content = Path(received["input_file"]).read_bytes()
        received["input_file"] = {
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    for name, value in received.items():
        print(f"{name} is {value!r}")
    return {"args": list(args), "kwargs": received}


@task
def noop() -> None:
    """Do nothing."""
