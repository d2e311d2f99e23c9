"""The scheduler's client of Girder, in threads: the routes that claim and update jobs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from girder_dask.errors import GirderDaskError, GirderError
from girder_dask.http.client import ApiClient, encode_json, json_object
from girder_dask.protocol.wire_json import from_json, to_json
from girder_dask.protocol.wire_version import WIRE_VERSION

__all__ = ["Acknowledgement", "GirderRequests", "HeldJob", "ReadKey", "SchedulerApi"]

_T = TypeVar("_T")

#: The id of a job, and the attempt of it that the scheduler has.
Acknowledgement = tuple[str, int]
#: The id of a job, and its attempt and sequence number as Girder has them.
HeldJob = tuple[str, int, int]
#: Returns the API key, or None without one.
ReadKey = Callable[[], str | None]


class SchedulerApi(ApiClient):
    """Requests of the scheduler to a Girder with the dask plugin.

    No request is retried here: the scheduler decides when to repeat it.

    Parameters
    ----------
    url
        The REST API, for example ``http://girder.example.org:8080/api/v1``.
    api_key
        The key that ``girder-dask credential`` created, or None for public requests only. A
        function is called before each exchange of the key for a token, so that a key which was
        replaced in its file is used from then on.
    timeout_s
        Seconds that an answer may take.
    """

    def __init__(
        self, url: str, api_key: str | ReadKey | None = None, *, timeout_s: float = 60.0
    ) -> None:
        super().__init__(url, timeout_s=timeout_s, retry_time_s=0.0)
        self._read_key: ReadKey = api_key if callable(api_key) else lambda: api_key

    def ping(self) -> dict[str, Any]:
        """Return the version of the plugin, which is public."""
        return self._object("GET", "dask/ping", signed=False)

    def version(self) -> dict[str, Any]:
        """Return the version of Girder, which is public."""
        return self._object("GET", "system/version", signed=False)

    def check_credential(self) -> dict[str, Any]:
        """Return what Girder tells the scheduler about itself
        (:func:`girder_dask.diagnostics.describe_process`).

        Raises
        ------
        GirderError
            If the API key may not update jobs.
        """
        return self._object("GET", "dask/credential")

    def update(
        self,
        scheduler: str,
        updates: Sequence[Mapping[str, Any]],
        received: Sequence[Acknowledgement] = (),
    ) -> dict[str, list[str]]:
        """Apply updates of many jobs.

        Parameters
        ----------
        scheduler
            The id of this run of the scheduler.
        updates
            Values of :meth:`girder_dask.protocol.messages.JobUpdate.to_wire`.
        received
            Job ids, each with the attempt that the scheduler has accepted.

        Returns
        -------
        dict
            Job ids under ``stale``, ``gone`` and ``cancel``, and attempts under ``superseded``.

        Raises
        ------
        GirderError
            If Girder refuses them or cannot be reached.
        TypeError, ValueError
            If an update cannot be written as JSON.
        """
        body = {"scheduler": scheduler, "updates": to_json(updates), "received": list(received)}
        # Only the bytes are kept: they can be many, and Girder can be down for long.
        return self._object("POST", "dask/job/updates", encode_json(body))

    def claim(
        self,
        scheduler: str,
        limit: int,
        after: str | None = None,
        lacking: Sequence[HeldJob] = (),
        lease: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Claim unfinished jobs that this scheduler does not have.

        Parameters
        ----------
        scheduler
            The id of this run of the scheduler.
        limit
            The most jobs.
        after
            The start of a page of the jobs that Girder attributes to this scheduler. None for no
            page.
        lacking
            The entries of earlier pages that this scheduler does not have.
        lease
            The value of :meth:`girder_dask.scheduler.lease.SchedulerLease.request`. None for a
            claim without a lease.

        Returns
        -------
        dict
            ``specs``, values of :meth:`girder_dask.protocol.messages.JobSpec.to_wire`, ``cancel``,
            job ids, ``held``, the page, or None: lists of an id, an attempt and a sequence, and
            ``lease``, who leads. ``statuses`` are those of the jobs of the page, in the same order.
        """
        body = {
            "scheduler": scheduler,
            "limit": limit,
            "after": after,
            "lacking": list(lacking),
            "version": WIRE_VERSION,
            "lease": lease,
        }
        return dict(from_json(self._object("POST", "dask/job/claim", encode_json(body))))

    def release_lease(self, scheduler: str) -> None:
        """End the lease of this scheduler."""
        self._object("POST", "dask/lease/release", encode_json({"scheduler": scheduler}))

    def states(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return documents of jobs with their states, by id. Deleted jobs are missing.

        Raises
        ------
        GirderError
            If Girder cannot be reached, or answers something else.
        """
        answer = self._object("POST", "dask/job/states", encode_json({"ids": list(ids)}))
        try:
            return {str(job["_id"]): job for job in answer["jobs"]}
        except (KeyError, TypeError) as e:
            raise GirderError(
                f"{self.url} returned no job states; is its dask plugin outdated?"
            ) from e

    def _object(
        self, method: str, path: str, body: bytes | None = None, *, signed: bool = True
    ) -> dict[str, Any]:
        answer: dict[str, Any] = self.request(method, path, body, signed=signed, read=json_object)
        return answer

    def _sign_in(self, stale: str | None) -> str | None:
        try:
            self._api_key = self._read_key()
        except GirderDaskError as e:
            raise GirderError(str(e), status=401) from e
        if not self._api_key:
            raise GirderError(
                "The scheduler has no credential for Girder. Create one with 'girder-dask "
                "credential' and set girder.credential-file (or DASK_GIRDER__CREDENTIAL).",
                status=401,
            )
        return super()._sign_in(stale)


class _Connection:
    """A connection to Girder, and the only thread that uses it."""

    def __init__(self, name: str, api: SchedulerApi) -> None:
        self.api = api
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"girder-dask-{name}")

    async def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.api.close()


class GirderRequests:
    """The requests of one scheduler. Updates have a connection of their own.

    Parameters
    ----------
    scheduler_id
        The id of this run of the scheduler.
    make_api
        Makes a connection.
    """

    def __init__(self, scheduler_id: str, make_api: Callable[[], SchedulerApi]) -> None:
        self._id = scheduler_id
        self._updates = _Connection("updates", make_api())
        self._claims = _Connection("claims", make_api())
        #: How many requests were made, and how many of them failed, by what they are for.
        self.made = Counter[str]()
        self.failed = Counter[str]()

    async def _call(
        self, connection: _Connection, what: str, function: Callable[..., _T], *arguments: Any
    ) -> _T:
        self.made[what] += 1
        try:
            return await connection.call(function, *arguments)
        except Exception:
            self.failed[what] += 1
            raise

    async def update(
        self, updates: list[dict[str, Any]], acknowledgements: list[Acknowledgement]
    ) -> Mapping[str, list[str]]:
        """Post updates and acknowledgements; return ids of jobs by kind of answer."""
        update = self._updates.api.update
        return await self._call(
            self._updates, "updates", update, self._id, updates, acknowledgements
        )

    async def claim(
        self,
        limit: int,
        page_after: str | None,
        missing: Sequence[HeldJob],
        lease: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Claim unfinished jobs (:meth:`SchedulerApi.claim`)."""
        claim = self._claims.api.claim
        return await self._call(
            self._claims, "claims", claim, self._id, limit, page_after, missing, lease
        )

    async def release_lease(self) -> None:
        """End the lease of this scheduler."""
        await self._claims.call(self._claims.api.release_lease, self._id)

    async def states(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the documents of jobs by id, without deleted jobs."""
        return await self._call(self._claims, "states", self._claims.api.states, ids)

    async def check_credential(self) -> dict[str, Any]:
        """Check that the API key may update jobs; return Girder's description of itself."""
        return await self._claims.call(self._claims.api.check_credential)

    def close(self) -> None:
        """Close both connections."""
        self._updates.close()
        self._claims.close()
