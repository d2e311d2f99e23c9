"""The routes of our Girder plugin, as a client sees them."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import requests

from girder_dask.errors import GirderError
from girder_dask.http.client import error_cause, error_message
from girder_dask.http.redirects import ExplainedRequestError
from girder_dask.http.session import GirderSession
from girder_dask.protocol.messages import from_json, to_json
from girder_dask.protocol.names import TOKEN_HEADER

__all__ = ["SchedulerApi"]


class SchedulerApi:
    """A connection to the REST API of a Girder with the dask plugin.

    It signs in with an API key when it is first used, and again when Girder no longer
    knows its token. One thread may use it at a time; the connection is kept open.

    Parameters
    ----------
    url
        The REST API, for example ``http://girder.example.org:8080/api/v1``.
    api_key
        What ``girder-dask credential`` made, or None to use only what is public.
    timeout
        Seconds that an answer may take.
    """

    def __init__(self, url: str, api_key: str | None = None, *, timeout: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._api_key = api_key
        self._timeout = timeout
        self._session = GirderSession(self.url)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def ping(self) -> dict[str, Any]:
        """Return what the plugin says of itself to anybody: its version."""
        return self._request("GET", "dask/ping")

    def version(self) -> dict[str, Any]:
        """Return what Girder says of its version to anybody."""
        return self._request("GET", "system/version")

    def check_credential(self) -> dict[str, Any]:
        """Return what Girder says of itself to the scheduler
        (:func:`girder_dask.diagnostics.gather`).

        Raises
        ------
        GirderError
            If the API key is not good for updating jobs.
        """
        return self._signed("GET", "dask/credential")

    def update(
        self,
        scheduler: str,
        updates: Sequence[Mapping[str, Any]],
        received: Sequence[tuple[str, int]] = (),
    ) -> dict[str, list[str]]:
        """Apply updates of many jobs.

        Parameters
        ----------
        scheduler
            The id of this run of the scheduler.
        updates
            Values of :meth:`girder_dask.protocol.messages.JobUpdate.to_wire`.
        received
            Job ids with the number of the attempt that the scheduler has in hand.

        Returns
        -------
        dict
            Job ids under ``stale``, ``gone`` and ``cancel``.

        Raises
        ------
        GirderError
            If Girder refuses them or cannot be reached.
        TypeError, ValueError
            If an update is no JSON.
        """
        body = {"scheduler": scheduler, "updates": to_json(updates), "received": list(received)}
        # Not left to requests, which takes what is no JSON for a failure of the connection.
        # Nor is the text kept besides its bytes: it can be large, and Girder away for long.
        data = json.dumps(body, allow_nan=False, ensure_ascii=False).encode(
            "utf-8", "backslashreplace"
        )
        headers = {"Content-Type": "application/json"}
        return self._signed("POST", "dask/job/updates", data=data, headers=headers)

    def claim(
        self,
        scheduler: str,
        limit: int,
        after: str | None = None,
        lacking: Sequence[tuple[str, int, int]] = (),
    ) -> dict[str, Any]:
        """Take over unfinished jobs that this scheduler does not have.

        Parameters
        ----------
        scheduler
            The id of this run of the scheduler.
        limit
            The most jobs.
        after
            Where the page begins that is asked for of the jobs that Girder takes this scheduler
            to have, None for no page.
        lacking
            Those of such a page that it does not have, as they are there.

        Returns
        -------
        dict
            ``specs``, values of :meth:`girder_dask.protocol.messages.JobSpec.to_wire`, ``cancel``,
            job ids, and ``held``, the page, or None: lists of an id, an attempt and a sequence.
        """
        body = {"scheduler": scheduler, "limit": limit, "after": after, "lacking": list(lacking)}
        return dict(from_json(self._signed("POST", "dask/job/claim", json=body)))

    def states(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return documents of jobs by their ids, with their states, but for jobs that are gone.

        Raises
        ------
        GirderError
            If Girder cannot be reached, or answers something else.
        """
        answer = self._signed("POST", "dask/job/states", json={"ids": list(ids)})
        try:
            return {str(job["_id"]): job for job in answer["jobs"]}
        except (KeyError, TypeError) as e:
            raise GirderError(f"{self.url} gave no states of jobs; is its dask plugin old?") from e

    def _signed(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        with self._lock:
            if TOKEN_HEADER not in self._session.headers:
                self._sign_in()
            try:
                return self._request(method, path, **arguments)
            except GirderError as e:
                if e.status != 401:
                    raise
            self._sign_in()
            return self._request(method, path, **arguments)

    def _sign_in(self) -> None:
        if not self._api_key:
            raise GirderError(
                "The scheduler has no credential for Girder. Make one with 'girder-dask "
                "credential' and set girder.credential-file (or DASK_GIRDER__CREDENTIAL).",
                status=401,
            )
        self._session.headers.pop(TOKEN_HEADER, None)
        answer = self._request("POST", "api_key/token", data={"key": self._api_key})
        try:
            self._session.headers[TOKEN_HEADER] = answer["authToken"]["token"]
        except (KeyError, TypeError) as e:
            raise GirderError(f"{self.url} gave no token for the API key; is it Girder?") from e

    def _request(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = self._session.request(
                method, f"{self.url}/{path}", timeout=self._timeout, **arguments
            )
        except ExplainedRequestError as e:
            status = None if e.response is None else int(e.response.status_code)
            raise GirderError(str(e), status=status) from e
        except requests.RequestException as e:
            raise GirderError(f"Girder does not answer at {self.url} ({error_cause(e)}).") from e
        if response.ok:
            return _document(response)
        raise GirderError(
            f"Girder at {self.url} answered {response.status_code} to {method} {path}: "
            f"{error_message(response)}",
            status=response.status_code,
        )


def _document(response: requests.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise GirderError(
            f"What answers at {response.url} is no Girder with the dask plugin: it sent "
            f"{response.headers.get('Content-Type', 'something')} that is no JSON object."
        )
    return document
