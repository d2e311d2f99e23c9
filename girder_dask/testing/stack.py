"""The stack of the fixture ``girder_stack``, with methods for tests."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from girder_dask.jobs import FINAL, JobStatus, waits_for
from girder_dask.standalone import Stack
from girder_dask.standalone.stack_part import tail
from girder_dask.testing.remote import pack, unpack

__all__ = ["TestStack", "UnexpectedStatusError", "User", "WaitTimeoutError"]

# A job is looked at less and less often: each look takes Girder some milliseconds.
_MIN_POLL_S, _MAX_POLL_S, _POLL_GROWTH = 0.01, 0.3, 1.2
_REPORT_LINES = 15

# A line of Girder's access log. The test that sent the requests knows them.
_ACCESS = r"^\w+:cherrypy\.access\."
# Dask logs the exception of each task, which the job's own log has too.
_TASK_ERROR = r"- ERROR - Compute Failed$|^(Key|State|Task|Exception|Traceback): +\S"
_IN_REPORT = re.compile(_ACCESS)
_AFTER_JOB_LOG = re.compile(f"{_ACCESS}|{_TASK_ERROR}")


class UnexpectedStatusError(AssertionError):
    """A job ended in another state than the test waited for."""


class WaitTimeoutError(TimeoutError):
    """A job did not reach the state that the test waited for in time."""


@dataclass(frozen=True)
class User:
    """An ordinary user of the Girder under test.

    Attributes
    ----------
    client
        A ``GirderClient`` that is logged in as the user.
    id
        The id of the user.
    login
        The user's name.
    folder
        The document of the user's private folder.
    """

    client: Any = field(repr=False)
    id: str
    login: str
    folder: dict[str, Any] = field(repr=False)


class TestStack(Stack):
    """A :class:`~girder_dask.standalone.Stack` with methods for tests.

    The scheduler serves the pages of Dask's dashboard only with the option ``with_dashboard``,
    since they take half of the time in which it starts.
    """

    __test__ = False  # or pytest collects it

    def __init__(
        self, directory: str | os.PathLike[str], workers: int = 2, threads: int = 2, **options: Any
    ) -> None:
        self._secret = secrets.token_urlsafe(24)
        girder_env = {
            "GIRDER_DASK_TESTING_SECRET": self._secret,
            **options.pop("girder_env", {}),
        }
        options.setdefault("with_dashboard", False)
        super().__init__(directory, workers, threads, girder_env=girder_env, **options)
        self._admin: Any = None

    @property
    def admin(self) -> Any:
        """A ``GirderClient`` of the administrator."""
        if self._admin is None:
            self._admin = self.client()
        return self._admin

    def create_user(self) -> User:
        """Create an ordinary user with a private folder.

        The user has a token, and no password: Girder would take half a second to hash one and to
        check it.
        """
        from girder_dask.http.girder_client import GirderClient

        made = self.admin.post("dask/testing/user", json={"secret": self._secret})
        client = GirderClient(self.api, made["token"])
        folder = _private_folder(client, made["_id"])
        return User(client, made["_id"], made["login"], folder)

    def call(
        self,
        func: Callable[..., Any],
        *args: Any,
        user: User | Any = None,
        **kwargs: Any,
    ) -> Any:
        """Call a function inside a request of the Girder under test.

        Parameters
        ----------
        func
            The function. It is sent by value and imports what it needs of Girder itself.
        *args, **kwargs
            Its arguments; anything that can be pickled.
        user
            The user of the request: a :class:`User` or a ``GirderClient``. By default the
            administrator.

        Returns
        -------
        object
            The return value of the function.

        Raises
        ------
        Exception
            The exception of the function. Its cause is the remote traceback.
        """
        client: Any = user or self.admin
        if isinstance(client, User):
            client = client.client
        answer = client.post(
            "dask/testing/call",
            json={"secret": self._secret, "call": _text(pack(func, args, kwargs))},
        )
        return unpack(base64.b64decode(answer["outcome"]))

    def upload(
        self,
        source: str | os.PathLike[str] | bytes,
        name: str | None = None,
        *,
        client: Any = None,
        folder: str | None = None,
    ) -> dict[str, Any]:
        """Upload a file, and return its document.

        Parameters
        ----------
        source
            The path of a file, or its content.
        name
            The name in Girder. By default that of the path.
        client
            A ``GirderClient`` of the owner, by default of the administrator.
        folder
            The id of the folder. By default the owner's private folder.
        """
        client = client or self.admin
        if folder is None:
            folder = _private_folder(client, client.get("user/me")["_id"])["_id"]
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not data:
            raise ValueError("Girder does not take empty files.")
        name = name or ("data" if isinstance(source, bytes) else Path(source).name)
        file = client.uploadStreamToFolder(folder, io.BytesIO(data), name, len(data))
        return dict(file)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job document as the administrator sees it."""
        return dict(self.admin.get(f"job/{job_id}"))

    def log(self, job_id: str) -> str:
        """Return the log of a job."""
        return "".join(self.job(job_id).get("log") or [])

    def wait(
        self, job_id: str, timeout: float = 30, status: JobStatus | int | None = None
    ) -> dict[str, Any]:
        """Wait for the end of a job, and return its document.

        Parameters
        ----------
        job_id
            The id of the job.
        timeout
            Seconds to wait at most.
        status
            The state to wait for, by default any final state.

        Raises
        ------
        AssertionError
            If the job ends in another state than ``status``. The message has the job's log.
        TimeoutError
            If the job does not reach the state in time. The message has the job's log.
        """
        __tracebackhide__ = True  # pytest shows the line of the test
        deadline, pause_s = time.monotonic() + timeout, _MIN_POLL_S
        while True:
            job = self.job(job_id)
            now = job["status"]
            if now == status or (status is None and now in FINAL):
                return job
            if now in FINAL:
                expected = f", not {JobStatus(int(status or 0)).name}"
                raise UnexpectedStatusError(_describe(job, expected))
            if time.monotonic() > deadline:
                raise WaitTimeoutError(_describe(job, f" after {timeout:g} s"))
            time.sleep(pause_s)
            pause_s = min(pause_s * _POLL_GROWTH, _MAX_POLL_S)

    def open_jobs(self) -> list[str]:
        """Return the ids of all jobs that have not ended."""
        statuses = json.dumps([int(status) for status in JobStatus if status not in FINAL])
        found = self.admin.get("job/all", parameters={"statuses": statuses, "limit": 0})
        return [job["_id"] for job in found]

    def cancel_open_jobs(self) -> list[str]:
        """Cancel all jobs that have not ended, and return their ids.

        The fixture ``girder_stack`` does so after a test that failed, whose jobs would otherwise
        keep the workers from the jobs of the next one.
        """
        import girder_client

        found = self.open_jobs()
        for job_id in found:
            with contextlib.suppress(girder_client.HttpError):  # it has ended meanwhile
                self.admin.put(f"job/{job_id}/cancel")
        return found

    def recent_logs(self, lines: int = 15) -> str:
        """Return the last log lines of each part but the database and the broker."""
        return self._last_lines(lines, None)

    def report_logs(self, error: BaseException | None = None) -> str:
        """Return the log lines for the report of a failed test, without Girder's access log.

        After an ``error`` of :meth:`wait`, which has the log of its job, they do not repeat what
        the job raised.
        """
        has_job_log = isinstance(error, (UnexpectedStatusError, WaitTimeoutError))
        return self._last_lines(_REPORT_LINES, _AFTER_JOB_LOG if has_job_log else _IN_REPORT)

    def _last_lines(self, lines: int, leave_out: re.Pattern[str] | None) -> str:
        chapters = []
        for part in self.parts:
            if part.name in {"mongod", "redis"} and part.running:
                continue
            state = "" if part.running else f" (ended, exit code {part.exit_code})"
            last = tail(part.log, lines, leave_out=leave_out)
            chapters.append("\n".join([f"--- {part.name}{state}", *last]))
        return "\n".join(chapters)


def _private_folder(client: Any, user_id: str) -> dict[str, Any]:
    for folder in client.listFolder(user_id, parentFolderType="user", name="Private"):
        return dict(folder)
    made = client.createFolder(user_id, "Private", parentType="user", public=False)
    return dict(made)


def _describe(job: dict[str, Any], how: str) -> str:
    log = "".join(job.get("log") or []) or "(empty)\n"
    reason = waits_for(job)
    status = f"{JobStatus(job['status']).name}{f' ({reason})' if reason else ''}"
    return f"Job {job['_id']} ({job['title']!r}) is {status}{how}. Its log:\n{log}"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
