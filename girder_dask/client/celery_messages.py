"""Messages of Celery that a running job sends to Girder, over its REST API."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from girder_dask.errors import GirderError
from girder_dask.http.client import ApiClient
from girder_dask.protocol.celery_message import CeleryJob, CeleryMessage
from girder_dask.protocol.messages import StoredResult
from girder_dask.protocol.wire_json import from_json, to_json

__all__ = ["RestCeleryMessages", "read_stored"]

# The most different calls of a run with one id that Girder is told of.
_MAX_KEYS = 1000


class RestCeleryMessages:
    """A :class:`girder_dask.client.backend.CeleryMessages` of a running job.

    Parameters
    ----------
    api
        A client with the token of the job.
    """

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        # The keys of the calls that this run has sent, by the id of their messages.
        self._sent: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def send(self, message: CeleryMessage, job: CeleryJob | None, call: str) -> str | None:
        """Record a message as a job under the running one, as the interface says.

        Raises
        ------
        GirderError
            If Girder refuses the message, or does not answer.
        """
        # The same call with the same id is the same message, also if a later run sends it.
        text = f"{message.id} {call}".encode("utf-8", "surrogatepass")
        key = hashlib.md5(text, usedforsecurity=False).hexdigest()
        with self._lock:
            sent = sorted(self._sent.get(message.id, ()))[:_MAX_KEYS]
        body = {
            "message": to_json(message.to_wire()),
            "job": None if job is None else to_json(job.to_wire()),
            "key": key,
            "sent": sent,
        }
        answer = self._api.request("POST", "dask/celery/message", body)
        if answer.get("earlier") is not None:
            return str(answer["earlier"])
        with self._lock:
            self._sent.setdefault(message.id, set()).add(key)
        return None

    def control(self, method: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Revoke tasks that the running job has started. Other commands have no answer here."""
        if method == "revoke":
            given = arguments.get("task_id")
            ids = given if isinstance(given, list) else [given]
            self._api.request("POST", "dask/celery/revoke", {"ids": [str(each) for each in ids]})
        return {}

    def result(self, task_id: str) -> StoredResult | None:
        """Return the result of the newest job with an id of Celery, None if there is none."""
        answer = self._api.request("POST", "dask/celery/result", {"id": task_id})
        return None if answer["result"] is None else read_stored(answer["result"])


def read_stored(wire: Mapping[str, Any]) -> StoredResult:
    """Return the result in an answer of Girder.

    Raises
    ------
    GirderError
        If it cannot be read.
    """
    try:
        return msgspec.convert(from_json(wire), StoredResult, builtin_types=(bytes,))
    except msgspec.ValidationError as e:
        raise GirderError(
            f"Girder's answer about the end of a job cannot be read: {e}. Install the same "
            "girder_dask here as in Girder."
        ) from e
