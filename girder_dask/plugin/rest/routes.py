"""Registration of the plugin's routes, with the rules that hold for all of them.

Errors have the right status, answers are strict JSON, and a browser never runs their content.
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

from girder_dask.plugin import response_headers
from girder_dask.plugin.rest import error_responses, response_json

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
        The function that Girder calls, with its decorators.
    documented
        Whether the OpenAPI document names it.
    """
    route = _with_error_handling(handler)
    if not documented:
        # Girder documents each route that has a description.
        route.description = None
    resource.route(method, path, route)


def _with_error_handling(handler: Callable[..., Any]) -> Any:
    @functools.wraps(handler)
    def answer(*args: Any, **kwargs: Any) -> Any:
        response_headers.forbid_scripts()
        with error_responses.http_errors():
            return _encoded(handler(*args, **kwargs))

    return answer


def _encoded(value: Any) -> Any:
    if callable(value):
        return value  # a stream
    data = response_json.encode(value)
    if _wants_page():
        return response_json.to_json_values(value)
    setResponseHeader("Content-Type", "application/json")
    setRawResponse()
    return data


def _wants_page() -> bool:
    """Return True if Girder shows the answer as a page, since a browser has opened the route."""
    for accepted in cherrypy.request.headers.elements("Accept"):
        if accepted.value in ("application/json", "text/html"):
            return bool(accepted.value == "text/html")
    return False


class StoredJob:
    """The model of a job for ``modelParam``, also for malformed documents."""

    name = "job"

    def load(self, job_id: Any, **_: Any) -> dict[str, Any] | None:
        """Return a job without a check of access, which the route does itself.

        Raises
        ------
        RestException
            If the id is malformed or the document cannot be read.
        """
        if not ObjectId.is_valid(job_id):
            raise RestException(f"{str(job_id)[:100]!r} is not the id of a job.")
        try:
            job: dict[str, Any] | None = Job().load(job_id, force=True)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise RestException(
                f"Job {job_id} cannot be read, since its arguments are not stored as Girder stores "
                "them. Its owner or an administrator can delete it."
            ) from e
        return job
