"""Result backend of Celery for ``dask://``: the result of a task is that of its job."""

from __future__ import annotations

from typing import Any

from celery import states
from celery.backends.base import BaseBackend

from girder_dask.client.backend import get_backend
from girder_dask.errors import JobCanceled, JobFailed
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import StoredResult
from girder_dask.protocol.payload import NotOpened, open_value

__all__ = ["Backend"]

_STATES = {
    JobStatus.INACTIVE: states.PENDING,
    JobStatus.QUEUED: states.PENDING,
    JobStatus.SUCCESS: states.SUCCESS,
    JobStatus.ERROR: states.FAILURE,
    JobStatus.CANCELED: states.REVOKED,
}


class Backend(BaseBackend):
    """Backend that reads the results of jobs, and stores nothing itself."""

    persistent = True
    supports_autoexpire = True
    #: It has no state, so all threads of an app share it.
    thread_safe = True

    def __init__(self, app: Any, url: Any = None, **options: Any) -> None:
        super().__init__(app, **options)
        self.url = url

    def _store_result(self, *_: Any, **__: Any) -> None:
        """Do nothing: the run of the job reports its result."""

    def get_task_meta(self, task_id: str, cache: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """Return what Celery shows of a task."""
        return self._get_task_meta_for(task_id)

    def _get_task_meta_for(self, task_id: str) -> dict[str, Any]:
        found = get_backend().celery_messages.result(task_id)
        if found is None or found.status is None:
            return {"status": states.PENDING, "result": None, "traceback": None}
        return {
            "status": _STATES.get(JobStatus(found.status), states.STARTED),
            "result": _value(found),
            "traceback": None,
            "task_id": task_id,
            "children": [],
        }

    def _forget(self, task_id: str) -> None:
        """Do nothing: the result is deleted with its job."""

    def on_task_call(self, producer: Any, task_id: str) -> dict[str, Any]:  # noqa: ARG002
        """Return no more headers: nothing is consumed."""
        return {}

    def save_group(self, group_id: str, result: Any) -> Any:  # noqa: ARG002
        """Return the group, which is not stored."""
        return result

    def process_cleanup(self) -> None:
        """Do nothing: there is no connection."""


def _value(found: StoredResult) -> Any:
    if found.status == JobStatus.CANCELED:
        return JobCanceled(found.error or "The job was canceled.")
    if found.status == JobStatus.ERROR:
        return JobFailed(found.error or "The job failed. Its log has the reason.")
    if found.status != JobStatus.SUCCESS or found.value is None:
        return None
    try:
        return open_value(found.value, unpickle=False)
    except NotOpened as e:
        return JobFailed(f"The value of the task {e}.")
