"""Tasks that write to their log, in all the ways that there are."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import warnings

from girder_dask import task

logger = logging.getLogger(__name__)

_PROGRAM = """
import sys
tag, n = sys.argv[1], int(sys.argv[2])
for i in range(n):
    print(f'{tag} subprocess {i}', flush=True)
"""


@task
def chatty(n: int, tag: str = "chatty") -> None:
    """Write ``n`` lines from each of four sources, all of them at work at the same time.

    Each line is ``{tag} {source} {i}``, with ``i`` from 0 and the sources ``main`` (this
    thread), ``thread`` (a child thread), ``logging`` (this thread, level INFO) and ``subprocess``.
    The lines of one source are in order.
    """
    child = threading.Thread(target=_count, args=(n, tag))
    child.start()
    # Its output is not redirected: it goes where this process's goes.
    program = subprocess.Popen([sys.executable, "-c", _PROGRAM, tag, str(n)])
    for i in range(n):
        print(f"{tag} main {i}")
        logger.info("%s logging %d", tag, i)
    child.join()
    if program.wait() != 0:
        raise RuntimeError(f"The subprocess ended with {program.returncode}.")


def _count(n: int, tag: str) -> None:
    for i in range(n):
        print(f"{tag} thread {i}")


@task
def writes_bytes() -> None:
    """Write bytes to ``sys.stdout``, and to its buffer. Both are lines of the log."""
    # A mistake that docker_run of girder_worker makes; a log must take it.
    sys.stdout.write(b"bytes to stdout\n")  # type: ignore[arg-type]
    sys.stdout.buffer.write(b"bytes to buffer\n")


@task
def warns(text: str) -> None:
    """Issue a UserWarning with this text."""
    warnings.warn(text, stacklevel=1)
