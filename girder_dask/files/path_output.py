"""Results that are paths: which files may be sent to Girder, and which are left out."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import requests

from girder_dask.files.transform_base import ResourceTransform, ResultTransform
from girder_dask.files.upload_recovery import UploadRecovery
from girder_dask.files.uploads import attempt_headers

__all__ = ["FencedOutput", "PathOutput"]

# The most names in a log line about files that are left out.
_MAX_NAMES = 10


class FencedOutput(ResourceTransform, ResultTransform):
    """A hook whose requests name the attempt, so that Girder refuses one that is over.

    ``upload_recovery`` knows the uploads of earlier attempts while a job runs
    (:class:`girder_dask.files.upload_recovery.UploadRecovery`).
    """

    upload_recovery: UploadRecovery | None = None

    def _headers(self) -> dict[str, str]:
        return attempt_headers(self.upload_recovery, self.job)


class PathOutput(FencedOutput):
    """A hook that sends the files at the returned path to Girder."""

    output_file_path: str | None = None

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except requests.RequestException as e:
            raise self.failed("the result cannot be uploaded.", e) from e

    def _path(self, data: Any) -> str:
        """Return the function's result as an absolute path."""
        return str(Path(self.cwd or "", os.fspath(data)).absolute())

    def _source(self, data: Any) -> Path | None:
        """Return the path that the function returned, None if it does not exist."""
        try:
            source = Path(self._path(data))
            return source if source.exists() else None
        except (TypeError, ValueError) as e:
            raise self.failed(
                f"the function returned {data!r:.200}, which is not a path. Return the path of the "
                "file to upload."
            ) from e

    def _check_name(self, path: Path) -> None:
        try:
            path.name.encode()
        except UnicodeEncodeError as e:
            raise self.failed(
                f"the name {path.name!r} is not UTF-8, which Girder requires. Rename the file in "
                "the task."
            ) from e

    def _check_place(self, path: Path) -> None:
        """Refuse a path outside of the job's directory if its owner may not run their own code."""
        if not self.confined:
            return
        own = {each.resolve() for each in (self.work_dir, self.inputs_dir) if each is not None}
        if own.isdisjoint(path.resolve().parents):
            raise self.failed(
                f"{str(path)!r:.200} is not in the directory of the job. Only files there are "
                "sent, as the user who started it may not run code of their own. Have the task "
                "write into its working directory, girder_dask.current_job().work_dir."
            )
        found = path.stat()
        is_fetched = (found.st_dev, found.st_ino) in (self.links or ())
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1 and not is_fetched:
            raise self.failed(
                f"{str(path)!r:.200} has a second name (a hard link), so it may be a file "
                "that the task did not make. Have the task write a copy of it, as shutil.copy does."
            )

    def _note_left_out(self, paths: Sequence[Path], why: str) -> None:
        """Write into the job's log which files are not sent."""
        if paths:
            names = ", ".join(repr(path.name) for path in paths[:_MAX_NAMES])
            more = f" and {len(paths) - _MAX_NAMES} more" if len(paths) > _MAX_NAMES else ""
            self._note(f"{self._repr_model_()} has left out {names}{more}: {why}.")

    def _note(self, line: str) -> None:
        if self.note is not None:
            self.note(line)

    def _flat(self, source: Path) -> list[Path]:
        """Return the files of a flat directory, or the single file. The log names other entries."""
        if not source.is_dir():
            return [source]
        entries = sorted(source.iterdir())
        files = [entry for entry in entries if entry.is_file()]
        self._note_left_out(
            [entry for entry in entries if entry not in set(files)],
            "only files directly in the directory are sent; GirderUploadToFolder sends a tree",
        )
        return files

    def _count(self, files: list[Path]) -> None:
        for file in files:
            self._check_place(file)
            self._check_name(file)
            if not file.is_file():  # whoever opens a pipe waits for its other end
                raise self.failed(
                    f"{str(file)!r:.200} is neither a file nor a directory, but a pipe, a socket "
                    "or a device. Have the task write a file."
                )
        self._done, self._total = 0, sum(file.stat().st_size for file in files)

    def _tell(self, current: int, _total: int | None, name: str) -> None:
        self.tell(self._done + current, self._total, name)
