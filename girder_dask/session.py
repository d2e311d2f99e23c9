"""The session of a job's client, which waits for a Girder that is away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from girder_dask.patience import Patience, is_transient, was_not_sent

__all__ = ["make_session"]

# Seconds that a connection may take, and that Girder may work at a request, if nobody says.
_TIMEOUT = (10, 600)
# What HTTP lets a client make again, since it does the same twice as once.
_IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "PUT", "DELETE"}


class _PatientAdapter(HTTPAdapter):
    """Makes requests again that do the same twice as once, or have done nothing.

    One that has a timeout of its own is made once: whoever set that looks after what is then.
    """

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("timeout") is not None:
            return super().send(request, *args, **kwargs)
        kwargs["timeout"] = _TIMEOUT
        patience = Patience()
        while True:
            error, response = self._failed(request, *args, **kwargs)
            if error is None:
                return response
            may_repeat = request.method in _IDEMPOTENT or was_not_sent(error)
            if not may_repeat or not is_transient(error) or not _is_rewound(request):
                return _outcome(error, response)
            try:
                patience.wait(error)
            except requests.RequestException:
                return _outcome(error, response)

    def _failed(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> tuple[requests.RequestException | None, requests.Response | None]:
        """Send a request once. Return what came, and an error if that may pass."""
        try:
            response = super().send(request, *args, **kwargs)
        except requests.RequestException as e:
            return e, None
        if response.status_code < requests.codes.bad_request:
            return None, response
        return requests.HTTPError(request=request, response=response), response


def _outcome(error: Exception, response: requests.Response | None) -> requests.Response:
    if response is None:
        raise error
    return response


def _is_rewound(request: requests.PreparedRequest) -> bool:
    """Say whether a request has all of its body still."""
    return request.body is None or isinstance(request.body, (bytes, str))


def make_session(attributes: Mapping[str, Any] | None = None) -> requests.Session:
    """Return a session whose requests wait for Girder, for ``girder.worker.retry-time``.

    Those that read, PUT and DELETE are made again, and others if Girder surely has not seen them.

    Parameters
    ----------
    attributes
        Of the session, such as ``verify``.
    """
    session = requests.Session()
    # A kept connection may be closed by Girder just when it is used again.
    session.headers["Connection"] = "close"
    for scheme in ("http://", "https://"):
        session.mount(scheme, _PatientAdapter())
    for name, value in (attributes or {}).items():
        setattr(session, name, value)
    return session
