"""Backend that uses Girder's REST API: in notebooks, scripts and running tasks."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from girder_dask.client.celery_messages import RestCeleryMessages, read_stored
from girder_dask.errors import (
    GirderError,
    PayloadTooLargeError,
    SchedulerError,
    SubmissionError,
)
from girder_dask.http.client import ApiClient
from girder_dask.protocol.messages import MapParent, StoredResult, Submission
from girder_dask.protocol.request_limits import MAX_REQUEST_BYTES
from girder_dask.protocol.wire_json import to_json

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["RestBackend"]

# For the connection to the scheduler.
_CONNECT_TIMEOUT_S = 5.0

_MAX_JOBS_PER_REQUEST = 1_000


class RestBackend:
    """A :class:`girder_dask.client.backend.Backend` over HTTP. It is thread-safe.

    Parameters
    ----------
    api_url
        Girder's REST API, for example ``https://girder.example.org/api/v1``.
    token
        A Girder token, such as that of a running job.
    api_key
        An API key of the user, instead of a token.
    dask_client
        Returns a client of the Dask scheduler. Called when a client is first needed.
    dask_address
        The address of the scheduler, instead of ``dask_client``.
    ships_code
        Whether functions travel by value.
    unpickles
        Whether values of jobs are unpickled: True, or ``'own'`` for only the jobs of the user
        who is signed in.
    pins
        Whether values of jobs are pinned on the cluster for the lifetime of their ``JobResult``.
    retry_time_s
        How long requests are repeated while Girder cannot be reached.
    is_durable
        Whether internal errors of Girder, and submissions whose answer was lost, are retried as
        well. Set within a job.
    session
        Attributes of the ``requests.Session``, such as ``verify``.

    Examples
    --------
    >>> RestBackend('https://girder.example.org/api/v1', token='secret')
    <RestBackend https://girder.example.org/api/v1>
    """

    def __init__(
        self,
        api_url: str,
        *,
        token: str | None = None,
        api_key: str | None = None,
        dask_client: Callable[[], Client] | None = None,
        dask_address: str | None = None,
        ships_code: bool = True,
        unpickles: bool | str = True,
        pins: bool = False,
        retry_time_s: float = 30.0,
        is_durable: bool = False,
        session: Mapping[str, Any] | None = None,
    ) -> None:
        self.api_url = api_url.rstrip("/")
        self.ships_code = ships_code
        self.pins = pins
        self._unpickles = unpickles
        self._is_durable = is_durable
        self._api = ApiClient(
            api_url,
            token=token,
            api_key=api_key,
            retry_time_s=retry_time_s,
            retry_internal_errors=is_durable,
            session=session,
        )
        self._celery_messages = RestCeleryMessages(self._api)
        self._lock = threading.Lock()
        self._open_client = dask_client
        self._address = dask_address
        self._client: Client | None = None
        self._is_client_ours = False
        self._user: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<RestBackend {self.api_url}>"

    # -- the interface of Backend ----------------------------------------------------------

    def submit(
        self,
        submissions: Sequence[Submission],
        group: MapParent | None = None,
        *,
        more: bool = False,
    ) -> list[dict[str, Any]]:
        """Record a job for each submission, and return the job documents.

        With a group, its parent job is recorded too, and its document comes first. With ``more``,
        other jobs of the group follow.

        Raises
        ------
        SubmissionError
            If Girder refuses a call, or the user may not start it. No job was created.
        PayloadTooLargeError
            If the calls are too large for one request. No job was created.
        GirderError
            If Girder does not answer.
        """
        _check_owner([*submissions, *([] if group is None else [group])])
        body: dict[str, Any] = {"group": None if group is None else to_json(group.to_wire())}
        tasks = {submission.task for submission in submissions}
        if group is not None:
            # A map is repeated when its answer was lost, so that its pieces are sent once.
            body |= {"more": more, "key": uuid.uuid4().hex}
            tasks |= {group.task or group.title}
        elif self._is_durable:
            body["key"] = uuid.uuid4().hex  # the idempotency key of a repeated request
        try:
            answer = self._submit(submissions, body)
        except GirderError as e:
            raise _refusal(e, sorted(tasks)) from e
        return [dict(job) for job in answer["jobs"]]

    def extend_map(
        self, parent: str, submissions: Sequence[Submission], *, offset: int, is_last: bool
    ) -> list[str]:
        """Record further jobs under the parent of a map, and return their ids.

        Raises
        ------
        GirderError
            If Girder refuses a call, or does not answer.
        """
        _check_owner(submissions)
        body = {"parent": parent, "offset": offset, "more": not is_last, "key": uuid.uuid4().hex}
        return [str(job_id) for job_id in self._submit(submissions, body)["ids"]]

    def _submit(self, submissions: Sequence[Submission], body: dict[str, Any]) -> dict[str, Any]:
        _check_address(submissions)
        _check_size(submissions)
        body["submissions"] = [to_json(submission.to_wire()) for submission in submissions]
        answer: dict[str, Any] = self._api.request("POST", "dask/job", body, repeat="key" in body)
        return answer

    @property
    def celery_messages(self) -> RestCeleryMessages:
        """The messages of Celery that a running job sends."""
        return self._celery_messages

    def unpickles(self, job: Mapping[str, Any]) -> bool:
        """Return True if the value of this job may be unpickled here, which can run its code."""
        if self._unpickles != "own":
            return bool(self._unpickles)
        owner = job.get("userId")
        if owner is None:
            known = self.load_jobs([str(job["_id"])])
            owner = known[0].get("userId") if known else None
        return owner is not None and str(owner) == str(self.user().get("_id"))

    def load_job(self, job_id: str, *, log: bool = False) -> dict[str, Any]:
        """Return a job document. Raises GirderError if there is none that the user may read."""
        job = dict(self._api.request("GET", f"job/{_checked(job_id)}"))
        if not log:
            job.pop("log", None)
        return job

    def load_jobs(self, job_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return ``_id``, ``title``, ``status`` and ``progress`` of jobs that the user may read."""
        found: list[dict[str, Any]] = []
        ids = list(job_ids)
        for start in range(0, len(ids), _MAX_JOBS_PER_REQUEST):
            body = {"ids": ids[start : start + _MAX_JOBS_PER_REQUEST]}
            found += self._api.request("POST", "dask/job/states", body)["jobs"]
        return found

    def load_log(self, job_id: str) -> str:
        """Return the stored log of a job, which may be long."""
        return self._api.get_text(f"dask/job/{_checked(job_id)}/log")

    def load_result(self, job_id: str) -> StoredResult:
        """Return the stored result of a job."""
        return read_stored(self._api.request("GET", f"dask/job/{_checked(job_id)}/result"))

    def load_results(self, job_ids: Sequence[str]) -> dict[str, StoredResult]:
        """Return the stored results, by id, of those jobs that the user may read."""
        found: dict[str, StoredResult] = {}
        left = list(job_ids)
        while left:
            answer = self._api.request(
                "POST", "dask/job/results", {"ids": left[:_MAX_JOBS_PER_REQUEST]}
            )
            found |= {job_id: read_stored(result) for job_id, result in answer["results"].items()}
            left = [*answer["left"], *left[_MAX_JOBS_PER_REQUEST:]]
        return found

    def cancel(self, job_id: str) -> None:
        """Cancel a job."""
        self._api.request("PUT", f"dask/job/{_checked(job_id)}/cancel")

    def scheduler_address(self) -> str | None:
        """Return the address of the Dask scheduler, if one is known."""
        if self._client is not None and self._client.scheduler is not None:
            return str(self._client.scheduler.address)
        return self._address

    def dask_client(self) -> Client:
        """Return the client of the Dask scheduler, which the first call creates.

        Raises
        ------
        SchedulerError
            If none is known, or it does not answer.
        """
        with self._lock:
            if self._client is None:
                self._client = self._connected()
            return self._client

    def close(self) -> None:
        """Close the connections. A Dask client that was passed in stays open."""
        with self._lock:
            client, self._client = self._client, None
            is_ours, self._is_client_ours = self._is_client_ours, False
            self._open_client = self._address = None
        if is_ours and client is not None:
            client.close()
        self._api.close()

    # -- for connect() --------------------------------------------------------------------

    def user(self) -> dict[str, Any]:
        """Return ``_id`` of the user who is signed in, and ``login`` if the token may read it.

        The document is empty if no user is signed in.
        """
        if self._user is None:
            user = self._api.request("GET", "user/me")
            if user is None:  # the token has limited scopes, or is unknown
                token = self._api.request("GET", "token/current") or {}
                user = {"_id": token["userId"]} if token.get("userId") else {}
            self._user = dict(user)
        return self._user

    def _connected(self) -> Client:
        if self._open_client is not None:
            return self._open_client()
        if self._address is None:
            known = self._scheduler_of_girder()
            raise SchedulerError(
                "This needs a Dask scheduler, and none is known here. Connect again with the "
                "address at which this machine reaches it, or with a client of it: "
                f"girder_dask.connect(…, scheduler={known or 'tcp://dask.example.org:8786'!r})."
                f"{' Girder reaches it at that address.' if known else ''}"
            )
        from distributed import Client

        try:
            _check_reached(self._address)
            # asynchronous=False, since a notebook's own event loop runs in this thread.
            client = Client(self._address, asynchronous=False, set_as_default=False, timeout="10s")
        except (OSError, ValueError) as e:
            raise SchedulerError(
                f"The Dask scheduler at {self._address} does not answer ({e}). Check the address, "
                "and that this machine can reach it. Jobs can be started without it."
            ) from e
        self._is_client_ours = True
        return client

    def _scheduler_of_girder(self) -> str | None:
        try:
            status = self._api.request("GET", "dask/status", retry_time_s=0.0)
        except GirderError:
            return None
        address = status.get("scheduler", {}).get("address")
        return None if address is None else str(address)


def _check_reached(address: str) -> None:
    """Raise OSError at once if nothing listens there. A client would keep trying."""
    from distributed.comm.addressing import resolve_address

    scheme, _, host = resolve_address(address).partition("://")
    if scheme in ("tcp", "tls"):
        name, _, port = host.rpartition(":")
        socket.create_connection((name.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def _check_owner(given: Sequence[Submission | MapParent]) -> None:
    for call in given:
        if call.user is not None:
            task = call.task if isinstance(call, Submission) else None
            raise SubmissionError(
                f"{task or call.title} was started with girder_user=, which only code inside "
                "Girder may use. Here the user who is signed in owns the job. No job was created.",
                task=task,
            )


def _check_address(submissions: Sequence[Submission]) -> None:
    for call in submissions:
        if call.api_url is not None:
            raise SubmissionError(
                f"{call.task} was started with girder_api_url=, which only code inside Girder may "
                "use, since the job's token is sent there. Leave it out; the operator sets "
                "girder.api-url for the scheduler or the workers. No job was created.",
                task=call.task,
            )


def _check_size(submissions: Sequence[Submission]) -> None:
    size = sum(len(submission.payload) for submission in submissions)
    if size > MAX_REQUEST_BYTES:
        names = sorted({submission.task for submission in submissions})
        raise PayloadTooLargeError(
            f"{len(submissions):,} calls of {', '.join(names)} take {size:,} bytes, more than the "
            f"{MAX_REQUEST_BYTES:,} that one request may carry. Start them in several parts, or "
            "pass less: upload large data to Girder and pass its id, or pass the JobResult of a "
            "task that makes it. No job was created.",
            task=names[0],
        )


def _checked(job_id: str) -> str:
    """Return an id, quoted for the path of a URL."""
    return quote(str(job_id), safe="")


def _refusal(error: GirderError, names: Sequence[str]) -> Exception:
    """Return the exception for a submission of tasks that failed."""
    task = names[0] if len(names) == 1 else None
    text = str(error)
    if error.status is None or error.status >= 500:
        return GirderError(
            f"{text} Whether jobs of {', '.join(names)} were recorded is not known: check Girder's "
            "list of jobs before you start them again.",
            status=error.status,
        )
    suffix = "" if "No job was created" in text else " No job was created."
    return SubmissionError(f"{text.rstrip('.')}.{suffix}", task=task)
