"""Tasks that read and write files."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path
from typing import Any

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


@task
def hard_link(path: str) -> str:
    """Give a file a second name in the directory of the job, and return that."""
    link = current_job().work_dir / "link.txt"
    os.link(path, link)
    return str(link)


@task
def file_facts(path: str) -> dict[str, Any]:
    """Return ``name``, ``size``, ``crc`` and ``mode`` of a file, and the ``pid`` of the worker."""
    crc = 0
    with Path(path).open("rb") as f:
        while piece := f.read(1 << 20):
            crc = zlib.crc32(piece, crc)
    found = Path(path).stat()
    return {
        "name": Path(path).name,
        "size": found.st_size,
        "crc": crc,
        "mode": found.st_mode & 0o777,
        "pid": os.getpid(),
    }


@task
def read_tree(path: str) -> dict[str, Any]:
    """Return the text of each file below a directory by its path there, None for a directory."""
    return {
        str(p.relative_to(path)): None if p.is_dir() else p.read_text()
        for p in Path(path).rglob("*")
    }


@task
def make_tree(files: dict[str, Any]) -> str:
    """Make a directory as :func:`read_tree` would return it, and return its path."""
    directory = Path(tempfile.mkdtemp(dir=current_job().work_dir))
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_text(text)
    return str(directory)


@task(bind=True)
def read_in_place(self: Any, file: str, allowed: bool, hint: str | None = None) -> dict[str, Any]:
    """Read a Girder file in place, if this worker may: return its ``text``, and ``link``."""
    import dask.config

    from girder_dask.transforms import GirderFileIdAllowDirect

    transform = GirderFileIdAllowDirect(file, local_path=hint, gc=self.girder_client)
    transform.work_dir = self.work_dir
    with dask.config.set({"girder.worker.direct-paths": allowed}):
        path = Path(transform.transform())
    try:
        return {"text": path.read_text(), "link": str(path.readlink()) if path.is_symlink() else ""}
    finally:
        transform.cleanup()
