"""A task that leaves a trace of each of its runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from girder_dask import task

__all__ = ["tally"]


@task(bind=True)
def tally(
    self: Any, path: str, number: int, seconds: Sequence[float] = (0.0,), name: str = ""
) -> str | int:
    """Append ``number attempt pid`` to a file, and print a line each tenth of a second.

    ``seconds`` are how long each attempt goes on; the last holds for those that follow too.
    With a name it writes a file of that name, and returns its path. Else it returns the number.
    """
    attempt = self.request.attempt
    duration = seconds[min(attempt, len(seconds)) - 1]
    with Path(path).open("a") as out:
        out.write(f"{number} {attempt} {os.getpid()}\n")
    lines = max(int(duration * 10), 1)
    for i in range(lines):
        print(f"attempt {attempt} line {i}")
        time.sleep(duration / lines)
    if not name:
        return number
    made = self.work_dir / name
    made.write_text(f"made by attempt {attempt}\n")
    return str(made)
