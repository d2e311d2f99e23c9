"""A task that lets out its token, in each of the ways in which careless code does."""

from __future__ import annotations

import base64
import logging
import warnings
from collections.abc import Callable
from typing import Any

import requests

from girder_dask import task

__all__ = ["WAYS", "leaks"]


class Broken(Exception):
    """An error with an object of its own."""

    def __init__(self, what: str, response: requests.Response) -> None:
        super().__init__(what, response)
        self.response = response


def _prints(job: Any) -> None:
    print("signed in with", job.girder_client.token)


def _prints_in_parts(job: Any) -> None:
    for character in f"token {job.girder_client.token} was used\n":
        job.job_manager.write(character, forceFlush=True)


def _prints_coded(job: Any) -> None:
    code = base64.b64encode(f"user:{job.girder_client.token}".encode()).decode()
    print("Authorization: Basic", code)


def _logs(job: Any) -> None:
    logging.getLogger("careless").warning("headers %r", {"Girder-Token": job.girder_client.token})
    warnings.warn(f"token={job.girder_client.token}", stacklevel=1)


def _tells_progress(job: Any) -> None:
    job.job_manager.updateProgress(message=f"with {job.girder_client.token}", forceFlush=True)


def _returns_text(job: Any) -> Any:
    return {"used": job.girder_client.token, "count": 7}


def _returns_bytes(job: Any) -> Any:
    return {"used": b"=" + job.girder_client.token.encode(), "count": 7}


def _returns_response(job: Any) -> Any:
    return job.girder_client.sendRestRequest("GET", "user/me", jsonResp=False)


def _raises_text(job: Any) -> None:
    raise ValueError(f"cannot sign in with {job.girder_client.token}")


def _raises_http_error(job: Any) -> None:
    job.girder_client.get("no/such/route")


def _raises_from_http_error(job: Any) -> None:
    try:
        job.girder_client.get("no/such/route")
    except requests.HTTPError as e:
        raise RuntimeError("no coins") from e


def _raises_connection_error(job: Any) -> None:
    headers = {"Girder-Token": job.girder_client.token}
    parameters = {"token": job.girder_client.token}
    requests.get("http://127.0.0.1:1/x", headers=headers, params=parameters, timeout=5)


def _raises_with_response(job: Any) -> None:
    raise Broken("no coins", _returns_response(job))


def _starts_child(job: Any) -> None:
    leaks.delay("returns 7", job.girder_client.token, girder_job_title=f"child of {job.id}")


def _returns_7(_job: Any) -> int:
    return 7


WAYS: dict[str, Callable[[Any], Any]] = {
    "prints": _prints,
    "prints in parts": _prints_in_parts,
    "prints coded": _prints_coded,
    "logs": _logs,
    "tells progress": _tells_progress,
    "returns text": _returns_text,
    "returns bytes": _returns_bytes,
    "returns response": _returns_response,
    "raises text": _raises_text,
    "raises HTTP error": _raises_http_error,
    "raises from HTTP error": _raises_from_http_error,
    "raises connection error": _raises_connection_error,
    "raises with response": _raises_with_response,
    "starts child": _starts_child,
    "returns 7": _returns_7,
}


@task(bind=True)
def leaks(self: Any, way: str, _text: str = "") -> Any:
    """Let the token out in a way of :data:`WAYS`."""
    return WAYS[way](self)
