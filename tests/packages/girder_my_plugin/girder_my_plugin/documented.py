"""The examples of the page "Using Girder Worker with Girder", as a plugin holds them."""

from __future__ import annotations

from typing import Any

from my_worker_tasks import my_task

from girder_dask import JobResult


def start(arg1: Any, arg2: Any) -> JobResult:
    """Start the task with positional and keyword arguments."""
    return my_task.delay(arg1, arg2, kwarg1="hello", kwarg2="world")


def start_titled() -> JobResult:
    """Start the task with a title and a type, which the result shows when it is indexed."""
    job = my_task.delay(girder_job_title="This is my job", girder_job_type="my_task")
    assert job["title"] == "This is my job"
    assert job["type"] == "my_task"
    return job


def process_file(file: dict[str, Any]) -> dict[str, Any]:
    """Start the task on a file of Girder, and return the job."""
    from girder_dask.transforms import GirderFileId

    return my_task.delay(input_file=GirderFileId(file["_id"])).job


def process_file_with_worker_utils(file: dict[str, Any]) -> dict[str, Any]:
    """Do the same with the transform that the page imports."""
    from girder_worker_utils.transforms.girder_io import GirderFileId

    return my_task.delay(input_file=GirderFileId(file["_id"])).job
