"""One run of the demo: start a stack, run a job, and show its result.

The job is started as users start it: through the route of the example package ``girder_coins``
(``examples/coins``).
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from girder_dask.cli.demo.job import JobView, follow
from girder_dask.cli.demo.view import DemoView, PlainView, view_for
from girder_dask.errors import GirderDaskError, JobError, StackError
from girder_dask.jobs import JobStatus
from girder_dask.standalone import Stack
from girder_dask.standalone.launcher import watch

__all__ = ["run_demo"]

_JOB_TIMEOUT_S = 120.0
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def run_demo(
    directory: Path | None,
    keep: bool = False,
    as_json: bool = False,
    image: str = "coins.png",
) -> int:
    """Start a stack, count the objects on a picture in a job, and show the result.

    Parameters
    ----------
    directory
        Where the stack keeps its data. If None, a temporary directory that is removed at the end
        unless the demo failed or ``keep`` is set.
    keep
        Leave the stack running until KeyboardInterrupt.
    as_json
        Print one JSON document to standard output, and messages to standard error.
    image
        The name of a picture in the data of scikit-image.

    Returns
    -------
    int
        The exit code 0, once the job has ended in SUCCESS and its drawing is in Girder.

    Raises
    ------
    GirderDaskError
        If the example package is not installed, the stack does not start, or the job fails.
        The message has the job's log and the directory of the stack's logs.
    """
    source = _find_image(image)
    view = PlainView(sys.stderr) if as_json else view_for(sys.stdout)
    with _place(directory, keep=keep) as place:
        with Stack(place, workers=1, reporter=view.reporter) as stack:
            demo = _Demo(stack, view)
            demo.run(source)
            if directory or keep:
                demo.save_drawing(place)
            elif not as_json:
                demo.save_drawing()
            if as_json:
                print(json.dumps(demo.describe(keep=keep), indent=2), flush=True)
            else:
                demo.tell(keep=keep)
            if keep:
                view.note("The stack keeps running. Ctrl-C stops it; the data stays.")
                with contextlib.suppress(KeyboardInterrupt):
                    watch(stack)
            else:
                view.note(
                    "The stack stops now. With --keep it keeps running, and its pages can be seen."
                )
        demo.raise_error()
    return 0


class _Demo:
    """One run of the demo on a stack, and its results. ``error`` says why it failed."""

    def __init__(self, stack: Stack, view: DemoView) -> None:
        self.error: str | None = None
        self._stack = stack
        self._view = view
        self._client = stack.client()
        self._began = time.monotonic()
        self._seconds = 0.0
        self._job: JobView | None = None
        self._answer: dict[str, Any] | None = None
        self._drawing: dict[str, Any] | None = None
        self._content = b""

    def run(self, source: Path) -> None:
        """Upload the picture, run the job, and download its drawing."""
        try:
            folder = self._make_folder()
            file = self._client.uploadFileToFolder(folder, str(source))
            self._view.note(f"Uploaded {file['name']} ({file['size']} bytes)")
            job = self._client.post(f"coins/{file['_id']}/count", parameters={"folderId": folder})
            self._follow(job["_id"])
            self._answer = self._client.getItem(file["itemId"])["meta"]
            self._fetch_drawing(folder, picture=file["itemId"])
        except requests.RequestException as e:
            self.error = f"A request of the demo to Girder failed: {e}"
        except GirderDaskError as e:
            self.error = str(e)
        self._seconds = time.monotonic() - self._began

    def _make_folder(self) -> str:
        user = self._client.get("user/me")["_id"]
        name = f"girder_dask demo {datetime.datetime.now():%Y-%m-%d %H:%M:%S}"  # noqa: DTZ005
        return str(self._client.createFolder(user, name, parentType="user")["_id"])

    def _follow(self, job_id: str) -> None:
        with self._view.watching():
            for job in follow(
                self._client, job_id, timeout=_JOB_TIMEOUT_S, check=self._check_stack
            ):
                self._job = job
                self._view.show(job)
        if job.status != JobStatus.SUCCESS:
            raise JobError(f"The job ended in {job.status.name}.", job_id=job.id)

    def _check_stack(self) -> None:
        messages = self._stack.poll()
        if messages:
            raise StackError("\n".join(messages))

    def _fetch_drawing(self, folder: str, picture: str) -> None:
        """Download and check the drawing that the job uploaded."""
        items = [i for i in self._client.listItem(folder) if i["_id"] != picture]
        if len(items) != 1:
            raise JobError(f"The job uploaded {len(items)} drawings instead of one.")
        (item,) = items
        (file,) = self._client.listFile(item["_id"])
        self._content = b"".join(self._client.downloadFileAsIterator(file["_id"]))
        if len(self._content) != file["size"] or not self._content.startswith(_PNG_SIGNATURE):
            raise JobError(
                f"The file {file['name']} that the job uploaded is not a complete PNG picture."
            )
        self._drawing = {
            "name": file["name"],
            "file": file["_id"],
            "item": item["_id"],
            "url": f"{self._stack.girder}/#item/{item['_id']}",
            "bytes": file["size"],
        }

    def save_drawing(self, directory: Path | None = None) -> None:
        """Save a copy of the drawing, if there is one, in ``directory`` or a new directory."""
        if self._drawing is not None:
            directory = directory or Path(tempfile.mkdtemp(prefix="girder-dask-drawing-"))
            path = directory / self._drawing["name"]
            path.write_bytes(self._content)
            self._drawing["path"] = str(path)

    def raise_error(self) -> None:
        """Raise JobError with the job's log and the place of further logs if the demo failed."""
        if self.error is None:
            return
        parts = [self.error]
        if self._job is not None:
            parts.append(f"The log of the job:\n{self._job.log or '(empty)'}")
        parts.append(f"The logs of the stack are in {self._stack.directory / 'logs'}")
        raise JobError("\n".join(parts), job_id=self._job.id if self._job else None)

    def describe(self, *, keep: bool) -> dict[str, Any]:
        """Return the results for JSON, with the administrator's password if ``keep`` is set."""
        document: dict[str, Any] = {
            "job": self._job.describe() if self._job else None,
            "answer": self._answer,
            "picture": self._drawing,
            "urls": self._urls(),
            "seconds": round(self._seconds, 3),
        }
        if self.error:
            document["error"] = self.error
        if keep:
            document |= {"login": self._stack.login, "password": self._stack.password}
        return document

    def _urls(self) -> dict[str, str]:
        urls = {
            "girder": self._stack.girder,
            "api": self._stack.api,
            "dashboard": self._stack.describe()["dashboard"],
        }
        if self._job is not None:
            urls["job"] = f"{self._stack.girder}/#job/{self._job.id}"
        return urls

    def tell(self, *, keep: bool) -> None:
        """Print the results."""
        rows: dict[str, str] = {}
        if self._answer is not None:
            rows["Answer"] = _sentence(self._answer)
        if self._drawing is not None:
            rows["Drawing"] = f"{self._drawing['name']}, {self._drawing['bytes']} bytes"
            rows["in Girder"] = self._drawing["url"]
            rows["a copy"] = self._drawing["path"]
        if self._job is not None:
            rows["Job"] = self._urls()["job"]
        if keep:
            rows["Dashboard"] = self._urls()["dashboard"]
            rows["Login"] = f"{self._stack.login}  password {self._stack.password}"
        if self.error:
            rows["Failed"] = self.error
        self._view.note("")
        for name, value in rows.items():
            self._view.note(f"{name:<10} {value}")
        self._view.note("")


def _sentence(answer: dict[str, Any]) -> str:
    """Return the answer as text. The count comes first; Girder sorts by name."""
    measures = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in answer.items() if k != "objects")
    return f"{answer.get('objects')} objects ({measures})"


def _find_image(name: str) -> Path:
    """Return the path of a picture of scikit-image. Check what the demo needs."""
    if importlib.util.find_spec("girder_coins") is None:
        raise GirderDaskError(
            "The demo's task is in the example package girder_coins, which is not installed. In "
            "the directory of girder_dask's source: pip install . './examples/coins[girder,worker]'"
        )
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise GirderDaskError(
            "The demo's task needs scikit-image: pip install . './examples/coins[worker]'"
        )
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    if not path.is_file():
        raise GirderDaskError(f"scikit-image has no picture {name!r}. Try 'coins.png'.")
    return path


@contextlib.contextmanager
def _place(directory: Path | None, *, keep: bool) -> Iterator[Path]:
    """Yield ``directory``, or a temporary one that is removed unless the demo failed."""
    if directory is not None:
        yield directory
        return
    path = Path(tempfile.mkdtemp(prefix="girder-dask-demo-"))
    failed = False
    try:
        yield path
    except Exception:
        failed = True
        raise
    finally:
        # The logs there may explain a failure.
        if not (failed or keep):
            shutil.rmtree(path, ignore_errors=True)
