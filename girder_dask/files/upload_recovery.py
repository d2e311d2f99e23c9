"""What attempts of a job have left in Girder: whole files of earlier ones, and broken uploads."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from girder_dask.http.retry import get_json, post_json
from girder_dask.protocol.names import ATTEMPT_HEADER, UPLOAD_HEADER

__all__ = ["UploadRecovery", "UploadState"]


class UploadState(Enum):
    """What has become of an upload when the answer to a request did not come.

    ``COMPLETE``: it is a file. ``UNCHANGED``: Girder has nothing of that request. ``NOTHING``:
    it had begun something, which is removed.
    """

    COMPLETE = "complete"
    UNCHANGED = "unchanged"
    NOTHING = "nothing"


class UploadRecovery:
    """What is in Girder of the uploads of a job.

    Those of the attempts before this one are each to be replaced once.

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

    def headers(self, upload: str) -> dict[str, str]:
        """Return what the requests of an upload say of the run and of themselves."""
        return {ATTEMPT_HEADER: str(self._attempt), UPLOAD_HEADER: upload}

    def settle(
        self,
        gc: Any,
        upload: str,
        parent: tuple[str, str],
        begun: tuple[str, int] | None = None,
    ) -> UploadState:
        """Find out what has become of an upload of this attempt that broke.

        Girder may have died at any step of making a file of it.

        Parameters
        ----------
        gc
            A ``girder_client.GirderClient`` of the job.
        upload
            Its name, as it is in the header.
        parent
            What it is put into: ``'item'`` or ``'folder'``, and its id.
        begun
            The id that Girder has given to it, and the offset of the piece that broke.

        Raises
        ------
        requests.RequestException
            If Girder refuses, or stays away for ``girder.worker.retry-time``.
        """
        given: dict[str, Any] = {"name": upload}
        if parent[0] == "folder":
            given["folderId"] = parent[1]
        if begun is not None:
            given["uploadId"], given["offset"] = begun
        answer = post_json(gc, f"dask/job/{self._job_id}/upload", given)
        return UploadState(answer["state"])

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
                get_json(gc, f"dask/job/{self._job_id}/uploads", {"before": self._attempt})
            )
        for file in self._left:
            if (file["folderId"], file["name"]) == (folder, name):
                self._left.remove(file)
                return file
        return None
