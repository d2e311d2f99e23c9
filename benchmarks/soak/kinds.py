"""The kinds of jobs of a soak: how each is started, and how it must end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from girder_dask.jobs import JobStatus

__all__ = [
    "CONTENT",
    "IN_GIRDER",
    "OUTPUTS",
    "OUTSIDE",
    "Places",
    "allowed_ends",
    "start_in_girder",
    "title",
    "value",
]

#: The kinds that are started in a request of Girder.
IN_GIRDER = (
    *("artifact", "canceled", "chain", "error", "file", "flood", "once", "output", "process"),
    *("retry", "theirs late", "theirs once"),
)
#: The kinds that are started from outside.
OUTSIDE = ("map", "outside")
#: The kinds that upload a file of their number to a folder.
OUTPUTS = {"output", "outside"}
#: The content of the file that jobs read.
CONTENT = b"seven..."

_SUCCESS, _ERROR = JobStatus.SUCCESS, JobStatus.ERROR


@dataclass(frozen=True)
class Places:
    """Where jobs read and write.

    Attributes
    ----------
    directory
        A directory of the hosts of workers.
    outputs
        The id of the folder of outputs.
    file
        The id of the file that jobs read.
    """

    directory: str
    outputs: str
    file: str

    @property
    def tally(self) -> str:
        """The file in which tasks note their runs."""
        return str(Path(self.directory) / "tally")

    @property
    def their_tally(self) -> str:
        """The file in which girder_worker's tasks note their runs."""
        return str(Path(self.directory) / "their-tally")


def title(kind: str, number: int) -> str:
    """Return the title of the job of a call."""
    return f"{number} {kind}"


def allowed_ends(kind: str) -> set[JobStatus]:
    """Return the states in which a job may end where workers are lost."""
    if kind in {"once", "theirs once"}:
        return {_SUCCESS, _ERROR}
    return {{"canceled": JobStatus.CANCELED, "error": _ERROR}.get(kind, _SUCCESS)}


def value(kind: str, number: int) -> Any:
    """Return what a job must return, None if that does not matter."""
    return {
        "chain": number + 2,
        "file": len(CONTENT),
        "map": list(range(1, 11)),
        "once": number,
        "process": number,
        "retry": 7,
        "theirs late": number,
        "theirs once": number,
    }.get(kind)


def start_in_girder(kind: str, number: int, name: str, places: Any) -> str:
    """Start a job in a request of Girder, and return its id."""
    import my_worker_tasks as ours
    import their_tasks.tasks as theirs

    from girder_dask import JobResult
    from girder_dask.transforms import (
        GirderFileId,
        GirderUploadJobArtifact,
        GirderUploadToFolder,
    )

    options: dict[str, Any] = {"girder_job_title": name}
    if kind.startswith("theirs "):
        task = theirs.tally_late if kind == "theirs late" else theirs.tally_once
        job = task.apply_async([places.their_tally, number, 0.5], **options).job
        return str(job["_id"])
    noted = [places.tally, number, [0.5]]
    upload = [GirderUploadToFolder(places.outputs)]
    code = f"time.sleep(0.2); result = {number}"

    def chain() -> Any:
        first = ours.add_one.delay(number)
        return ours.add_one.apply_async([JobResult(first.id)], **options)

    start = {
        "artifact": lambda: ours.make_files.apply_async(
            [2], girder_result_hooks=[GirderUploadJobArtifact()], **options
        ),
        "canceled": lambda: ours.slow.apply_async([120, 1200], **options),
        "chain": chain,
        "error": lambda: ours.fails.apply_async(["as it must"], **options),
        "file": lambda: ours.file_size.apply_async([GirderFileId(places.file)], **options),
        "flood": lambda: ours.steady.apply_async([2000, 0.5], **options),
        "once": lambda: ours.tally.apply_async(noted, at_most_once=True, **options),
        "output": lambda: ours.tally.apply_async(
            [*noted, f"out-{number}.txt"], girder_result_hooks=upload, **options
        ),
        "process": lambda: ours.process.apply_async([code], **options),
        "retry": lambda: ours.fails_once.apply_async(
            [f"{places.directory}/retry-{number}"], retries=3, **options
        ),
    }
    return str(start[kind]().id)
