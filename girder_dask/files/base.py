"""What every transform is: an argument or a result that stands for something in Girder.

A transform holds no Girder client when it travels. The runner hands it that of its job
(``gc``), a directory that is removed when the run ends (``work_dir``), the host's cache of
files (``cache``) and a function that shows bytes on the job (``report``).
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
    certificate_problem,
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

#: What belongs to one run, and so does not travel.
_OF_A_RUN = {
    "gc", "work_dir", "inputs_dir", "cwd", "job", "cache", "links", "note", "report", "recovery",
    "temp_dir_path", "file_path", "item_path", "folder_path", "output_file_path", "_stock",
}  # fmt: skip
#: What Girder says of an id that nothing has.
_INVALID_ID = re.compile(r"\bInvalid (?:\w+ )?(?:id|ObjectId)\b", re.IGNORECASE)
_ID = re.compile(r"[\w -]*", re.ASCII)
_LONGEST_NAME = 255  # bytes, on the file systems of today
_LONGEST_EXTENSION = 40


def explain(transform: Any, error: BaseException) -> TransformError | None:
    """Say in a sentence why a transform failed at Girder, whoever wrote it.

    Parameters
    ----------
    transform
        The transform, ours or a foreign one.
    error
        What its ``transform()`` raised.

    Returns
    -------
    TransformError or None
        None if the error is no answer of Girder and no failure to reach it.
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
        untrusted = certificate_problem(error)
        if untrusted is None:
            return f"{girder} speaks no TLS that is understood here ({error})."
        return (
            f"The certificate of {girder} is not trusted on the worker ({untrusted}). Ask the "
            "operator to name the authority in REQUESTS_CA_BUNDLE there."
        )
    if isinstance(error, requests.exceptions.InvalidJSONError):
        return f"What answers as {girder} sent no JSON ({error})."
    return f"Girder did not answer ({type(error).__name__}: {error_cause(error)})."


def safe_name(name: str, default: str) -> str:
    """Return a file name that stays in its directory, with the extension it had.

    >>> safe_name('../scan.nii.gz', '5f3c')
    '.._scan.nii.gz'
    """
    safe = name.replace("/", "_").replace("\0", "_")
    if safe in ("", ".", ".."):
        return default
    if len(safe.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME:
        return safe
    extension = "".join(Path(safe).suffixes)[-_LONGEST_EXTENSION:]
    room = _LONGEST_NAME - len(extension.encode("utf-8", "replace"))
    stem = safe.encode("utf-8", "replace")[: max(room, 0)].decode("utf-8", "ignore")
    return stem + extension


class _Bound:
    """What the runner binds to a run, and what every transform has."""

    #: The Girder client of the job, while it runs.
    gc: Any = None
    #: A directory of this run alone, while it runs. That of a hook is the task's own.
    work_dir: Path | None = None
    #: The host's cache of files (:class:`girder_dask.files.cache.FileCache`), or None.
    cache: Any = None
    #: The files of the cache that inputs of this run have put into ``work_dir`` under another
    #: name: the device and inode of each.
    links: set[tuple[int, int]] | None = None
    #: Called with the bytes that are through, all bytes (None if unknown) and a message.
    report: Callable[[int, int | None, str], None] | None = None
    #: Called with a line for the job's log, while it runs.
    note: Callable[[str], None] | None = None

    def __init__(self, *, gc: Any = None) -> None:
        self.gc = gc

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _OF_A_RUN}

    def _repr_model_(self) -> str:
        """Return what is shown on the job's page."""
        return str(self)

    def cleanup(self) -> None:
        """Take away what :meth:`transform` left. Called whatever happened."""

    def directory(self) -> Path:
        """Make a directory that is gone after the run."""
        return Path(tempfile.mkdtemp(dir=self.work_dir))

    def tell(self, current: int, total: int | None, message: str) -> None:
        """Show on the job how many bytes are through."""
        if self.report is not None:
            self.report(current, total, message)


class Transform(_Bound, abc.ABC):
    """A value that is made on the worker.

    Parameters
    ----------
    gc
        A ``girder_client.GirderClient``. The runner sets that of the job.
    """

    @abc.abstractmethod
    def transform(self) -> Any:
        """Return the value that the function gets."""


@Transform.register
class _BoundHook(_Bound):
    """What the runner binds a hook to besides."""

    job: Mapping[str, Any] | None = None
    confined: bool = False
    inputs_dir: Path | None = None
    cwd: str | None = None


class ResultTransform(_BoundHook, abc.ABC):
    """What is done with a result.

    Attributes
    ----------
    job
        The job document's id and title.
    confined
        Whether it is to send and delete nothing but what is in ``work_dir``.
    inputs_dir
        Where the inputs of the run are, if it has some.
    cwd
        Where the task was when it returned, which relative paths in its result start from.
    """

    @abc.abstractmethod
    def transform(self, data: Any) -> Any:
        """Take the result; what is returned replaces it."""

    def exception(self) -> None:
        """Hear that there is no result: the function, an input or another hook failed."""


class ResourceTransform(_Bound):
    """What a transform has that stands for one thing in Girder."""

    #: What the thing is called in messages, and in ``_<kind>_id``.
    kind = "resource"

    def __init__(self, _id: Any, *, gc: Any = None) -> None:
        super().__init__(gc=gc)
        self._id = str(_id)
        # It becomes a part of addresses, in which other characters lead elsewhere.
        if not _ID.fullmatch(self._id):
            raise TransformError(
                f"{type(self).__name__}({self._id!r:.100}): that is no id of a {self.kind} in "
                "Girder, which is 24 letters and digits."
            )

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that make this transform anew, all plain values."""
        return {"_id": self._id}

    def _repr_model_(self) -> str:
        return f"{type(self).__name__}({self._id!r})"

    def __repr__(self) -> str:
        return self._repr_model_()

    def failed(self, what: str, error: Exception | None = None) -> TransformError:
        """Make the error that says what went wrong with what, and why."""
        why = "" if error is None else f" {failure_reason(self.kind, error)}"
        asked = isinstance(error, requests.RequestException)
        lasting = asked and error is not None and not is_transient(error)
        return TransformError(f"{self._repr_model_()}: {what}{why}", permanent=lasting)

    def client(self) -> Any:
        """Return the Girder client.

        Raises
        ------
        TransformError
            If there is none, or nothing to ask for.
        """
        if not self._id.strip():
            raise TransformError(
                f"{self._repr_model_()}: the id of the {self.kind} is empty.", permanent=True
            )
        if self.gc is None:
            raise self.failed(
                "there is no Girder to ask, as this worker knows no address of it. Ask the "
                "operator to set girder.api-url."
            )
        return self.gc
