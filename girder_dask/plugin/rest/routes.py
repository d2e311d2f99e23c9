"""The one way in which the plugin's routes are added.

What holds for each of them is here: which errors are answered how, that the answer is strict JSON,
and that a browser runs nothing of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cherrypy
from bson import ObjectId
from girder.api.rest import Resource, setRawResponse, setResponseHeader
from girder.exceptions import RestException
from girder_jobs.models.job import Job

from girder_dask.plugin import user_content
from girder_dask.plugin.rest import responses

__all__ = ["StoredJob", "add"]


def add(
    resource: Resource,
    method: str,
    path: tuple[str, ...],
    handler: Callable[..., Any],
    *,
    documented: bool = True,
) -> None:
    """Add a route to a resource.

    Parameters
    ----------
    resource
        A resource of Girder's REST API.
    method
        The HTTP method.
    path
        The path below the resource; parts that begin with a colon are arguments.
    handler
        What Girder calls, with its decorators.
    documented
        Whether the OpenAPI document names it.
    """
    route = _answering(handler)
    if not documented:
        # Girder documents whatever has a description, and has no other way to say no.
        route.description = None
    resource.route(method, path, route)


def _answering(handler: Callable[..., Any]) -> Any:
    @functools.wraps(handler)
    def answer(*args: Any, **kwargs: Any) -> Any:
        user_content.forbid_scripts()
        with responses.translated_errors():
            return _ready(handler(*args, **kwargs))

    return answer


def _ready(value: Any) -> Any:
    if callable(value):
        return value  # a stream
    data = responses.encode(value)
    if _wants_page():
        return responses.to_json_values(value)
    setResponseHeader("Content-Type", "application/json")
    setRawResponse()
    return data


def _wants_page() -> bool:
    """Say whether Girder shows the answer as a page, since a browser has opened the route."""
    for accepted in cherrypy.request.headers.elements("Accept"):
        if accepted.value in ("application/json", "text/html"):
            return bool(accepted.value == "text/html")
    return False


class StoredJob:
    """The model of a job for ``modelParam``, where the document may be anything."""

    name = "job"

    def load(self, job_id: Any, **_: Any) -> dict[str, Any] | None:
        """Return a job, whoever asks. The route itself looks at rights.

        Raises
        ------
        RestException
            If it is no id, or the document cannot be read.
        """
        if not ObjectId.is_valid(job_id):
            raise RestException(f"{str(job_id)[:100]!r} is not the id of a job.")
        try:
            job: dict[str, Any] | None = Job().load(job_id, force=True)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise RestException(
                f"Job {job_id} cannot be read: its arguments are not kept as Girder keeps them. "
                "Its owner or an administrator can delete it."
            ) from e
        return job
