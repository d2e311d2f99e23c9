"""The probe that finds Girder's REST API at an address which may be wrong."""

from __future__ import annotations

import contextlib
import http.cookiejar
from dataclasses import dataclass
from typing import Any

import requests

from girder_dask._version import __version__
from girder_dask.errors import GirderError
from girder_dask.http.authorities import TrustingSession, certificate_refusal
from girder_dask.http.redirects import (
    ExplainedRequestError,
    host_of,
    redirect_target,
    refuse_redirect,
)
from girder_dask.http.request_errors import GATEWAY_STATUSES, error_cause

__all__ = ["ApiProbe", "ProbeResult"]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """A JSON object that was found, and the REST API that sent it."""

    url: str
    document: dict[str, Any]


class ApiProbe:
    """Requests without a token to addresses where Girder may be.

    Redirects within a host are followed, as from http to https. All others are refused: the key
    that is sent to the address found must not go to a host that the user did not name.

    Parameters
    ----------
    timeout_s
        Seconds that an answer may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._session = _SameHostSession()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def get(self, url: str, path: str) -> ProbeResult | None:
        """Return the JSON object at ``url/path``, or None if something else is there.

        Raises
        ------
        GirderError
            If there is no answer, or a redirect leads to another host, or from https to http.
        """
        try:
            response = self._session.get(f"{url}/{path}", timeout=self._timeout_s)
            refuse_redirect(response)
        except ExplainedRequestError as e:
            raise GirderError(str(e)) from e
        except requests.RequestException as e:
            refused = certificate_refusal(e, url)
            raise GirderError(
                refused or f"Girder does not answer at {url} ({error_cause(e)})."
            ) from e
        if response.status_code in GATEWAY_STATUSES:
            raise GirderError(
                f"Girder does not answer at {url} ({response.status_code} {response.reason}).",
                status=response.status_code,
            )
        if url.startswith("https:") and response.url.startswith("http:"):
            raise GirderError(
                f"{url} leads to {response.url}, where a key would travel unencrypted. Ask the "
                "operator of this Girder, or give that address if you mean it."
            )
        with contextlib.suppress(ValueError):
            found = response.json()
            if response.ok and isinstance(found, dict):
                return ProbeResult(response.url.removesuffix(f"/{path}"), found)
        return None


class _SameHostSession(TrustingSession):
    def __init__(self) -> None:
        super().__init__()
        self.headers["User-Agent"] = f"girder_dask/{__version__}"
        self.cookies.set_policy(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return the target of a redirect within the same host, None for any other."""
        if not resp.is_redirect or host_of(redirect_target(resp)) != host_of(resp.url):
            return None
        return super().get_redirect_target(resp)
