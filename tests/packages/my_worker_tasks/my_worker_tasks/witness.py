"""A task that says all that a job can say, and keeps a diary of it elsewhere."""

from __future__ import annotations

import itertools
import logging
import time
from pathlib import Path
from typing import Any

from girder_dask import progress, task

__all__ = ["witness"]

logger = logging.getLogger(__name__)


@task(bind=True)
def witness(
    self: Any, diary: str, lines: int = 20, until: str = "", ends: str = "", about: str = ""
) -> Any:
    """Say ``line 0``, ``line 1``, … in turn in each way that there is, ten in a second.

    There are at least so many lines, and more until there is a file ``until``. The diary is a
    directory; what it has of a job is a file of its id, with the times at which the function
    began and ended, and how many lines it said.

    ``ends`` is a path to write to, which is returned, or ``raises``. Else the number of lines is
    returned. ``about`` is a file to read first.
    """
    with (Path(diary) / self.id).open("a") as notes:
        print("began", time.time(), file=notes, flush=True)
        if about:
            Path(about).read_bytes()
        said = 0
        for n in progress(itertools.count(), total=lines, message="speaks"):
            if n >= lines and (not until or Path(until).exists()):
                break
            _say(self, n)
            said += 1
            time.sleep(0.1)
        print("ended", time.time(), said, file=notes, flush=True)
    if ends == "raises":
        raise ValueError("as it was told to")
    if not ends:
        return said
    path = self.work_dir / ends
    path.write_text(f"{ends} of attempt {self.request.attempt}\n")
    return str(path)


def _say(job: Any, number: int) -> None:
    manager, text = job.job_manager, f"line {number}"
    ways = (print, logger.info, lambda line: manager.write(f"{line}\n", forceFlush=True))
    ways[number % len(ways)](text)
    manager.updateProgress(current=number + 1, message=text, forceFlush=number % 2 == 0)
    manager.updateStatus(manager.refreshStatus())
