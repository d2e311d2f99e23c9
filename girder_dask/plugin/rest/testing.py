"""The route that runs code in a Girder under test: ``dask/testing/call``.

The route exists only if the environment variable ``GIRDER_DASK_TESTING_SECRET`` is set when Girder
starts, and requires that secret. :class:`girder_dask.testing.stack.TestStack` uses it to call
``delay()`` inside a real request. Never set the variable on a Girder that others can reach.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import os
from typing import Any

from girder.api import access
from girder.api.rest import Resource
from girder.exceptions import AccessException, RestException

__all__ = ["ENVIRONMENT_VARIABLE", "mount"]

logger = logging.getLogger(__name__)

#: The environment variable with the secret.
ENVIRONMENT_VARIABLE = "GIRDER_DASK_TESTING_SECRET"


def mount(resource: Resource) -> None:
    """Add ``POST dask/testing/call`` if this Girder was started for tests."""
    secret = os.environ.get(ENVIRONMENT_VARIABLE)
    if not secret:
        return
    logger.warning(
        "%s is set: anyone who knows the secret can run any code in this Girder. Outside tests, "
        "unset the variable and restart Girder.",
        ENVIRONMENT_VARIABLE,
    )
    resource.route("POST", ("testing", "call"), _call(resource, secret), nodoc=True)


def _call(resource: Resource, secret: str) -> Any:
    @access.public
    def call(**_: Any) -> dict[str, str]:
        body = resource.getBodyJson()
        given = body.get("secret") if isinstance(body, dict) else None
        # Before the rest of the body is read: unpickling the call runs its code.
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), secret.encode()):
            raise AccessException("The secret of this Girder under test is wrong.")
        try:
            data = base64.b64decode(body["call"], validate=True)
        except (KeyError, TypeError, binascii.Error) as e:
            raise RestException("The body has no call.") from e
        from girder_dask.testing.remote import run

        return {"outcome": base64.b64encode(run(data)).decode("ascii")}

    return call
