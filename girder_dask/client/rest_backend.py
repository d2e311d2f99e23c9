"""Submission over Girder's REST API: from a notebook, a script, or a running task."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from girder_dask.errors import (
    GirderError,
    PayloadTooLargeError,
    SchedulerError,
    SubmissionError,
)
from girder_dask.http.client import ApiClient
from girder_dask.protocol.messages import MapParent, StoredResult, Submission
from girder_dask.protocol.wire_json import from_json, to_json

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["RestBackend"]

# Seconds for a connection to the scheduler.
_CONNECT_TIMEOUT_S = 5.0

# Most jobs that are asked for in one request.
_MAX_JOBS_PER_REQUEST = 1_000

# Most bytes of packed calls in one request: Girder reads 64 MiB, in which they take a third more.
_MAX_REQUEST_BYTES = 47 * 1024**2


class RestBackend:
    """A :class:`girder_dask.client.backend.Backend` over HTTP. Any thread may use it.

    Parameters
    ----------
    api_url
        Girder's REST API, for example ``https://girder.example.org/api/v1``.
    token
        A Girder token, such as that of a running job.
    api_key
        An API key of the user, in place of a token.
    dask_client
        Returns a client of the Dask scheduler. It is called when one is first needed.
    dask_address
        The address of the scheduler, in place of ``dask_client``.
    ships_code
        Whether functions are shipped by value.
    unpickles
        Whether what jobs return is unpickled: True, or ``'own'`` for only the jobs of the
        user who is signed in.
    pins
        Whether what jobs return is held on the cluster for as long as their ``JobResult``.
    patience
        Seconds for which Girder may be away before what is asked of it fails.
    endures
        Whether it may have internal errors for as long, and the answer to a submission may be
        lost: within a job.
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
        patience: float = 30.0,
        endures: bool = False,
        session: Mapping[str, Any] | None = None,
    ) -> None:
        self.api_url = api_url.rstrip("/")
        self.ships_code = ships_code
        self.pins = pins
        self._unpickles = unpickles
        self._endures = endures
        self._api = ApiClient(
            api_url,
            token=token,
            api_key=api_key,
            retry_time_s=patience,
            retry_internal_errors=endures,
            session=session,
        )
        self._lock = threading.Lock()
        self._open_client = dask_client
        self._address = dask_address
        self._client: Client | None = None
        self._made_client = False
        self._user: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<RestBackend {self.api_url}>"

    # -- the interface of Backend ----------------------------------------------------------

    def submit(
        self, submissions: Sequence[Submission], group: MapParent | None = None
    ) -> list[dict[str, Any]]:
        """Record a job for each, have Girder send them, and return the job documents.

        With a group, its parent job is recorded too, and its document comes first.

        Raises
        ------
        SubmissionError
            If Girder refuses a call, or the user may not start it. No job was made.
        PayloadTooLargeError
            If the calls are too large for one request. No job was made.
        GirderError
            If Girder does not answer.
        """
        _check_owner([*submissions, *([] if group is None else [group])])
        _check_address(submissions)
        _check_size(submissions)
        body: dict[str, Any] = {
            "submissions": [to_json(submission.to_wire()) for submission in submissions],
            "group": None if group is None else to_json(group.to_wire()),
        }
        if self._endures:
            body["key"] = uuid.uuid4().hex  # by which Girder knows a request that comes again
        try:
            answer = self._api.request("POST", "dask/job", body, repeat=self._endures)
        except GirderError as e:
            raise _refusal(e, submissions) from e
        return [dict(job) for job in answer["jobs"]]

    def unpickles(self, job: Mapping[str, Any]) -> bool:
        """Say whether what this job returned may be unpickled here, which can run its code."""
        if self._unpickles != "own":
            return bool(self._unpickles)
        owner = job.get("userId")
        if owner is None:
            known = self.load_jobs([str(job["_id"])])
            owner = known[0].get("userId") if known else None
        return owner is not None and str(owner) == str(self.user().get("_id"))

    def load_job(self, job_id: str, *, log: bool = False) -> dict[str, Any]:
        """Return a job document. Raises GirderError where there is none that may be read."""
        job = dict(self._api.request("GET", f"job/{_checked(job_id)}"))
        if not log:
            job.pop("log", None)
        return job

    def load_jobs(self, job_ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return ``_id``, ``title``, ``status`` and ``progress`` of those that may be read."""
        found: list[dict[str, Any]] = []
        ids = list(job_ids)
        for start in range(0, len(ids), _MAX_JOBS_PER_REQUEST):
            body = {"ids": ids[start : start + _MAX_JOBS_PER_REQUEST]}
            found += self._api.request("POST", "dask/job/states", body)["jobs"]
        return found

    def load_log(self, job_id: str) -> str:
        """Return all that is kept of the log of a job, which may be long."""
        return self._api.get_text(f"dask/job/{_checked(job_id)}/log")

    def load_result(self, job_id: str) -> StoredResult:
        """Return what is kept of the end of a job."""
        return _stored(self._api.request("GET", f"dask/job/{_checked(job_id)}/result"))

    def load_results(self, job_ids: Sequence[str]) -> dict[str, StoredResult]:
        """Return what is kept of the ends of many jobs, by their ids, of those to be read."""
        found: dict[str, StoredResult] = {}
        left = list(job_ids)
        while left:
            answer = self._api.request(
                "POST", "dask/job/results", {"ids": left[:_MAX_JOBS_PER_REQUEST]}
            )
            found |= {job_id: _stored(kept) for job_id, kept in answer["results"].items()}
            left = [*answer["left"], *left[_MAX_JOBS_PER_REQUEST:]]
        return found

    def cancel(self, job_id: str) -> None:
        """Ask for the end of a job."""
        self._api.request("PUT", f"dask/job/{_checked(job_id)}/cancel")

    def scheduler_address(self) -> str | None:
        """Return the address of the Dask scheduler, if one is known."""
        if self._client is not None and self._client.scheduler is not None:
            return str(self._client.scheduler.address)
        return self._address

    def dask_client(self) -> Client:
        """Return a client of the Dask scheduler, which is made when it is first asked for.

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
        """Close the connections. A Dask client that was given stays open."""
        with self._lock:
            client, self._client = self._client, None
            made, self._made_client = self._made_client, False
            self._open_client = self._address = None
        if made and client is not None:
            client.close()
        self._api.close()

    # -- for connect() --------------------------------------------------------------------

    def user(self) -> dict[str, Any]:
        """Return ``_id`` and, if it may be known, ``login`` of the user who is signed in.

        The document is empty for nobody.
        """
        if self._user is None:
            user = self._api.request("GET", "user/me")
            if user is None:  # the token is limited, or there is none like it
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
                "No Dask scheduler is known here, and this needs one. Connect again with its "
                "address as this machine reaches it, or with a client of it: "
                f"girder_dask.connect(…, scheduler={known or 'tcp://dask.example.org:8786'!r})."
                f"{' That is how Girder reaches it.' if known else ''}"
            )
        from distributed import Client

        try:
            _check_reached(self._address)
            # asynchronous=False, as a notebook's own event loop runs in this thread.
            client = Client(self._address, asynchronous=False, set_as_default=False, timeout="10s")
        except (OSError, ValueError) as e:
            raise SchedulerError(
                f"The Dask scheduler at {self._address} does not answer ({e}). Check the address "
                "and that this machine reaches it; jobs can be started without it."
            ) from e
        self._made_client = True
        return client

    def _scheduler_of_girder(self) -> str | None:
        try:
            status = self._api.request("GET", "dask/status", retry_time_s=0.0)
        except GirderError:
            return None
        address = status.get("scheduler", {}).get("address")
        return None if address is None else str(address)


def _check_reached(address: str) -> None:
    """Raise OSError at once if nobody listens there. A client would go on trying."""
    from distributed.comm.addressing import resolve_address

    scheme, _, host = resolve_address(address).partition("://")
    if scheme in ("tcp", "tls"):
        name, _, port = host.rpartition(":")
        socket.create_connection((name.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def _stored(wire: Mapping[str, Any]) -> StoredResult:
    try:
        return msgspec.convert(from_json(wire), StoredResult, builtin_types=(bytes,))
    except msgspec.ValidationError as e:
        raise GirderError(
            f"Girder's answer about the end of a job cannot be read: {e}. Install the same "
            "girder_dask here as in Girder."
        ) from e


def _check_owner(given: Sequence[Submission | MapParent]) -> None:
    for call in given:
        if call.user is not None:
            task = call.task if isinstance(call, Submission) else None
            raise SubmissionError(
                f"{task or call.title} was started with girder_user=, which is for code inside "
                "Girder. Here the owner of a job is the user who is signed in. No job was made.",
                task=task,
            )


def _check_address(submissions: Sequence[Submission]) -> None:
    for call in submissions:
        if call.api_url is not None:
            raise SubmissionError(
                f"{call.task} was started with girder_api_url=, which is for code inside Girder. "
                "The token of a job is sent there, so no request says where that is. Leave it out; "
                "the operator sets girder.api-url for the scheduler or for the workers. No job was "
                "made.",
                task=call.task,
            )


def _check_size(submissions: Sequence[Submission]) -> None:
    size = sum(len(submission.payload) for submission in submissions)
    if size > _MAX_REQUEST_BYTES:
        names = sorted({submission.task for submission in submissions})
        raise PayloadTooLargeError(
            f"{len(submissions):,} calls of {', '.join(names)} take {size:,} bytes, more than the "
            f"{_MAX_REQUEST_BYTES:,} that one request may carry. Start them in several parts, or "
            "pass less: upload large data to Girder and pass its id, or pass the JobResult of a "
            "task that makes it. No job was made.",
            task=names[0],
        )


def _checked(job_id: str) -> str:
    """Return an id as it may stand in a path."""
    return quote(str(job_id), safe="")


def _refusal(error: GirderError, submissions: Sequence[Submission]) -> Exception:
    """Return what to raise for a submission that failed."""
    names = sorted({submission.task for submission in submissions})
    task = names[0] if len(names) == 1 else None
    said = str(error)
    if error.status is None or error.status >= 500:
        return GirderError(
            f"{said} Whether jobs of {', '.join(names)} were recorded is not known: look in "
            "Girder's list of jobs before you start them again.",
            status=error.status,
        )
    made = "" if "No job was made" in said else " No job was made."
    return SubmissionError(f"{said.rstrip('.')}.{made}", task=task)
