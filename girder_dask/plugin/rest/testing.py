"""The routes of a Girder under test, ``dask/testing/…``: run code, create a user.

They exist only if the environment variable ``GIRDER_DASK_TESTING_SECRET`` is set when Girder
starts, and require that secret. :class:`girder_dask.testing.stack.TestStack` uses them to call
``delay()`` inside a real request, and to create users. Never set the variable on a Girder that
others can reach.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import logging
import os
import secrets
from typing import Any

from girder.api import access
from girder.api.rest import Resource
from girder.exceptions import AccessException, RestException
from girder.models.token import Token
from girder.models.user import User

__all__ = ["ENVIRONMENT_VARIABLE", "mount"]

logger = logging.getLogger(__name__)

#: The environment variable with the secret.
ENVIRONMENT_VARIABLE = "GIRDER_DASK_TESTING_SECRET"


def mount(resource: Resource) -> None:
    """Add the routes if this Girder was started for tests."""
    secret = os.environ.get(ENVIRONMENT_VARIABLE)
    if not secret:
        return
    logger.warning(
        "%s is set: anyone who knows the secret can run any code in this Girder. Outside tests, "
        "unset the variable and restart Girder.",
        ENVIRONMENT_VARIABLE,
    )
    resource.route("POST", ("testing", "call"), _call(resource, secret), nodoc=True)
    resource.route("POST", ("testing", "user"), _create_user(resource, secret), nodoc=True)


def _checked_body(resource: Resource, secret: str) -> dict[str, Any]:
    """Return the body of the request. Raise AccessException unless it has the secret."""
    body = resource.getBodyJson()
    given = body.get("secret") if isinstance(body, dict) else None
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), secret.encode()):
        raise AccessException("The secret of this Girder under test is wrong.")
    return dict(body)


def _call(resource: Resource, secret: str) -> Any:
    @access.public
    def call(**_: Any) -> dict[str, str]:
        # Before the rest of the body is read: unpickling the call runs its code.
        body = _checked_body(resource, secret)
        try:
            data = base64.b64decode(body["call"], validate=True)
        except (KeyError, TypeError, binascii.Error) as e:
            raise RestException("The body has no call.") from e
        from girder_dask.testing.remote import run

        return {"outcome": base64.b64encode(run(data)).decode("ascii")}

    return call


def _create_user(resource: Resource, secret: str) -> Any:
    @access.public
    def create_user(**_: Any) -> dict[str, str]:
        """Create an ordinary user without a password, whose hash would take longer than a test."""
        _checked_body(resource, secret)
        login = f"user{secrets.token_hex(5)}"
        user = User().createUser(login, None, "Test", "User", f"{login}@example.org")
        token = Token().createToken(user)
        return {"_id": str(user["_id"]), "login": login, "token": str(token["_id"])}

    return create_user
