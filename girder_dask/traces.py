"""What earlier attempts of a job have left in folders of Girder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from girder_dask.patience import ask

__all__ = ["HEADER", "Traces"]

#: The header by which Girder knows what a job uploads, with the number of the attempt.
HEADER = "Girder-Dask-Attempt"


class Traces:
    """The uploads of the attempts before this one, each to be replaced once.

    An attempt may be lost after its upload and before its end is known. The next one uploads
    again, and must not leave two files where one attempt leaves one.

    Parameters
    ----------
    job_id
        The id of the job.
    attempt
        The number of this attempt, from 1.
    """

    def __init__(self, job_id: str, attempt: int) -> None:
        self._job_id = job_id
        self._attempt = attempt
        self._left: list[Mapping[str, Any]] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What requests that upload say of the run."""
        return {HEADER: str(self._attempt)}

    def take(self, gc: Any, folder: str, name: str) -> Mapping[str, Any] | None:
        """Return a file of an earlier attempt in a folder, None if there is none.

        Each is returned once, the oldest first: a run may upload several of one name.

        Parameters
        ----------
        gc
            A ``girder_client.GirderClient`` of the job.
        folder
            The id of the folder.
        name
            The name of the file.

        Raises
        ------
        requests.RequestException
            If Girder refuses, or stays away for ``girder.worker.retry-time``.
        """
        if self._attempt <= 1:
            return None
        if self._left is None:
            self._left = list(
                ask(gc, f"dask/job/{self._job_id}/uploads", {"before": self._attempt})
            )
        for file in self._left:
            if (file["folderId"], file["name"]) == (folder, name):
                self._left.remove(file)
                return file
        return None
