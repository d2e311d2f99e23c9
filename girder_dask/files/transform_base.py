"""Base classes of transforms: arguments and results that stand for something in Girder.

A transform travels without a Girder client. The runner binds it to a run: it sets the client of
the job (``gc``), a directory that is removed when the run ends (``work_dir``), the cache of the
host (``cache``) and a function that shows progress in bytes on the job (``report``).
"""

from __future__ import annotations

import abc
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from girder_dask.errors import TransformError
from girder_dask.http.redirects import ExplainedRequestError
from girder_dask.http.request_errors import (
    certificate_error,
    error_cause,
    error_message,
    has_no_content,
    is_transient,
)

__all__ = [
    "ResourceTransform",
    "ResultTransform",
    "Transform",
    "explain",
    "safe_name",
]

#: Attributes that the runner sets for one run, and that are not pickled.
_RUN_ATTRIBUTES = {
    "gc", "work_dir", "inputs_dir", "cwd", "job", "cache", "links", "note", "report",
    "upload_recovery", "temp_dir_path", "file_path", "item_path", "folder_path",
    "output_file_path", "_fetcher",
}  # fmt: skip
#: Girder's message about an id that does not exist.
_INVALID_ID = re.compile(r"\bInvalid (?:\w+ )?(?:id|ObjectId)\b", re.IGNORECASE)
_ID = re.compile(r"[\w -]*", re.ASCII)
_MAX_NAME_BYTES = 255  # of the usual file systems
_MAX_EXTENSION_CHARACTERS = 40


def explain(transform: Any, error: BaseException) -> TransformError | None:
    """Return in a sentence why Girder made a transform fail.

    Parameters
    ----------
    transform
        The transform, of this package or of another one.
    error
        What its ``transform()`` raised.

    Returns
    -------
    TransformError or None
        None if neither an answer of Girder nor a missing answer caused the error.
    """
    if isinstance(error, TransformError) or not isinstance(error, requests.RequestException):
        return None
    kind = transform.kind if isinstance(transform, ResourceTransform) else "file, item or folder"
    text = f"{_shown(transform)}: {failure_reason(kind, error)}"
    return TransformError(text, permanent=not is_transient(error))


def _shown(transform: Any) -> str:
    describe = getattr(transform, "_repr_model_", None)
    return str(describe()) if callable(describe) else type(transform).__name__


def failure_reason(kind: str, error: Exception) -> str:
    """Return why a request for something of this kind failed, for the owner of the job."""
    if isinstance(error, ExplainedRequestError):
        return str(error)
    response = getattr(error, "response", None)
    if response is None:
        return _silence(error)
    status, message = response.status_code, error_message(response, "")
    if status in (401, 403):
        return f"The owner of the job may not do this ({message or 'access denied'})."
    if status == 404 or (status == 400 and _INVALID_ID.search(message)):
        return f"There is no such {kind} in Girder ({message or 'not found'})."
    if has_no_content(error):
        return (
            f"Girder knows the {kind}, but has lost its content: {message} Ask Girder's operator, "
            "or upload it again."
        )
    return f"Girder answered {status}: {message or response.reason}"


def _silence(error: Exception) -> str:
    """Return why there was no answer that could be read."""
    host = urlsplit(str(getattr(getattr(error, "request", None), "url", None) or "")).netloc
    girder = f"Girder at {host.rpartition('@')[2]}" if host else "Girder"
    if isinstance(error, requests.exceptions.SSLError) and not is_transient(error):
        untrusted = certificate_error(error)
        if untrusted is None:
            return f"{girder} offers no TLS that this worker supports ({error})."
        return (
            f"The certificate of {girder} is not trusted on the worker "
            f"({untrusted.verify_message}). Ask the operator to set girder.ca-file there."
        )
    if isinstance(error, requests.exceptions.InvalidJSONError):
        return f"{girder} did not answer with JSON ({error})."
    return f"Girder did not answer ({type(error).__name__}: {error_cause(error)})."


def safe_name(name: str, default: str) -> str:
    """Return a file name that cannot leave its directory. The extension is kept.

    >>> safe_name('../scan.nii.gz', '5f3c')
    '.._scan.nii.gz'
    """
    safe = name.replace("/", "_").replace("\0", "_")
    if safe in ("", ".", ".."):
        return default
    if len(safe.encode("utf-8", "surrogatepass")) <= _MAX_NAME_BYTES:
        return safe
    extension = "".join(Path(safe).suffixes)[-_MAX_EXTENSION_CHARACTERS:]
    room = _MAX_NAME_BYTES - len(extension.encode("utf-8", "replace"))
    stem = safe.encode("utf-8", "replace")[: max(room, 0)].decode("utf-8", "ignore")
    return stem + extension


class _RunBound:
    """Base class of all transforms: the attributes that the runner sets, and progress."""

    #: The Girder client of the job, while it runs.
    gc: Any = None
    #: A directory of this run alone, while it runs. A hook gets that of the task.
    work_dir: Path | None = None
    #: The host's cache of files (:class:`girder_dask.files.cache.FileCache`), or None.
    cache: Any = None
    #: Device and inode of each cached file that the inputs of this run linked into ``work_dir``.
    links: set[tuple[int, int]] | None = None
    #: Called with the bytes done, all bytes (None if unknown) and a message.
    report: Callable[[int, int | None, str], None] | None = None
    #: Called with a line for the job's log, while it runs.
    note: Callable[[str], None] | None = None

    def __init__(self, *, gc: Any = None) -> None:
        self.gc = gc

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _RUN_ATTRIBUTES}

    def _repr_model_(self) -> str:
        """Return what is shown on the job's page."""
        return str(self)

    def cleanup(self) -> None:
        """Remove what :meth:`transform` created. Always called, also after a failure."""

    def directory(self) -> Path:
        """Make a directory that is removed after the run."""
        return Path(tempfile.mkdtemp(dir=self.work_dir))

    def tell(self, current: int, total: int | None, message: str) -> None:
        """Show on the job how many bytes are done."""
        if self.report is not None:
            self.report(current, total, message)


class Transform(_RunBound, abc.ABC):
    """An argument that the worker replaces by the value which the function gets.

    Parameters
    ----------
    gc
        A ``girder_client.GirderClient``. By default that of the job.
    """

    @abc.abstractmethod
    def transform(self) -> Any:
        """Return the value that the function gets."""


class _RunBoundHook(_RunBound):
    """Base class of all hooks: further attributes that the runner sets."""

    job: Mapping[str, Any] | None = None
    confined: bool = False
    inputs_dir: Path | None = None
    cwd: str | None = None


@Transform.register
class ResultTransform(_RunBoundHook, abc.ABC):
    """A hook that handles a result.

    Attributes
    ----------
    job
        The job document's id and title.
    confined
        Whether it may send and delete only what is in ``work_dir``.
    inputs_dir
        The directory with the inputs of the run, if it has any.
    cwd
        The task's working directory when it returned. Relative paths in the result start there.
    """

    @abc.abstractmethod
    def transform(self, data: Any) -> Any:
        """Handle the result. The returned value replaces it."""

    def exception(self) -> None:
        """Handle the lack of a result: the function, an input or another hook failed."""


class ResourceTransform(_RunBound):
    """A transform of one resource in Girder: a file, an item, a folder or a job."""

    #: The resource's kind in messages, and in ``_<kind>_id``.
    kind = "resource"

    def __init__(self, _id: Any, *, gc: Any = None) -> None:
        super().__init__(gc=gc)
        self._id = str(_id)
        # It becomes a part of URLs, in which other characters could lead to another route.
        if not _ID.fullmatch(self._id):
            raise TransformError(
                f"{type(self).__name__}({self._id!r:.100}): this is not the id of a {self.kind} in "
                "Girder, which has 24 letters and digits."
            )

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that make an equal transform, all plain values."""
        return {"_id": self._id}

    def _repr_model_(self) -> str:
        return f"{type(self).__name__}({self._id!r})"

    def __repr__(self) -> str:
        return self._repr_model_()

    def failed(self, what: str, error: Exception | None = None) -> TransformError:
        """Return an error that names this transform, what went wrong and why."""
        why = "" if error is None else f" {failure_reason(self.kind, error)}"
        asked = isinstance(error, requests.RequestException)
        lasting = asked and error is not None and not is_transient(error)
        return TransformError(f"{self._repr_model_()}: {what}{why}", permanent=lasting)

    def client(self) -> Any:
        """Return the Girder client.

        Raises
        ------
        TransformError
            If there is no client, or the id is empty.
        """
        if not self._id.strip():
            raise TransformError(
                f"{self._repr_model_()}: the id of the {self.kind} is empty.", permanent=True
            )
        if self.gc is None:
            raise self.failed(
                "this worker does not know the address of Girder. Ask the operator to set "
                "girder.api-url."
            )
        return self.gc
