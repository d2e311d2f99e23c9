"""Tasks that read and write files."""

from __future__ import annotations

import tempfile
from pathlib import Path

from girder_dask import current_job, task


@task
def file_size(path: str) -> int:
    """Return the size of a file in bytes, and print it with the file's name."""
    size = Path(path).stat().st_size
    print(f"{Path(path).name} has {size} bytes")
    return size


@task
def make_files(n: int) -> str:
    """Make a directory with the files ``file-0.txt`` to ``file-<n-1>.txt``, and return its path.

    File ``i`` holds the text ``content i``. The directory goes when the job ends.
    """
    directory = Path(tempfile.mkdtemp(dir=current_job().work_dir))
    for i in range(n):
        (directory / f"file-{i}.txt").write_text(f"content {i}\n")
    return str(directory)
