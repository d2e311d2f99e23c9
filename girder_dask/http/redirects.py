"""Redirects of Girder's API, and the errors they end in.

A token goes only to the API that issued it. Redirects of the API are errors. Those of downloads are
followed without the token, and Girder says for each whether it leads to a storage server of the
site or to a link.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

import requests

from girder_dask.protocol.names import KIND_HEADER

__all__ = [
    "ASSETSTORE",
    "LINK",
    "ExplainedRequestError",
    "LinkRefused",
    "StorageServerError",
    "UnexpectedRedirect",
    "host_of",
    "is_within_api",
    "redirect_kind",
    "redirect_target",
    "refuse_redirect",
]

#: The redirect leads to a storage server of the site.
ASSETSTORE = "assetstore"
#: The redirect leads to an address that a user gave for a file.
LINK = "link"

_API_PATH = re.compile(r"/api/v\d+/")
_REDIRECTS = range(300, 400)


class ExplainedRequestError(requests.RequestException):
    """An error of a request with a message for the owner of the job."""


class UnexpectedRedirect(ExplainedRequestError):
    """Girder's API, or a proxy in front of it, answered with a redirect that is not followed."""


class LinkRefused(ExplainedRequestError):
    """A link leads to a host that workers may not contact, or to a file that is too large."""


class StorageServerError(ExplainedRequestError):
    """The storage server to which Girder redirected a download failed.

    The message does not show the address, which may hold a signature.

    Parameters
    ----------
    host
        The name of the server.
    error
        The error of the request.
    kind
        The kind of the redirect: :data:`ASSETSTORE` or :data:`LINK`.
    """

    def __init__(self, host: str, error: requests.RequestException, kind: str = ASSETSTORE) -> None:
        response = error.response
        what = f"did not answer ({type(error).__name__})"
        if isinstance(error, requests.TooManyRedirects):
            what = "leads from one address to the next"
        elif response is not None:
            what = f"answered {response.status_code} {response.reason}"
        if kind == LINK:
            text = (
                f"The file is a link to {host}, which {what}. Correct the link, or upload the file."
            )
        else:
            text = (
                f"Girder says that the file is at {host}, which {what}. Ask the operator of that "
                "server."
            )
        super().__init__(text, response=response)
        self.host = host
        self.error = error
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.host, self.error, self.kind)


def redirect_target(response: requests.Response) -> str:
    """Return the address to which an answer leads. It may be invalid."""
    location = response.headers["Location"].encode("latin-1", "replace").decode("utf-8", "replace")
    try:
        return urljoin(response.url, location)
    except ValueError:
        return location


def redirect_kind(response: requests.Response) -> str | None:
    """Return the kind of a download's redirect, None for any other answer.

    A redirect without a kind is taken for a link, the less trusted of the two.
    """
    if not response.is_redirect:
        return None
    kind = response.headers.get(KIND_HEADER)
    if kind in (ASSETSTORE, LINK):
        return kind
    here = _split(response.url).path
    moved = _split(redirect_target(response)).path == here  # the API is at another address
    return LINK if "/download" in here and not moved else None


def refuse_redirect(response: requests.Response) -> None:
    """Raise UnexpectedRedirect if an answer is a redirect, and not one of a download."""
    if response.status_code not in _REDIRECTS:
        return
    response.close()
    method = getattr(response.request, "method", None) or "GET"
    answered = f"{_shown(response.url)} answered {response.status_code} to {method}"
    if "Location" not in response.headers:
        raise UnexpectedRedirect(f"{answered}, which Girder never does.", response=response)
    target = _split(redirect_target(response))
    hint = ""
    if target.path == urlsplit(response.url).path and (found := _API_PATH.search(target.path)):
        api = _shown(urlunsplit(target._replace(path=target.path[: found.end() - 1])))
        hint = f": {api} in place of {_shown(response.url)[: -len(target.path) + found.end() - 1]}"
    raise UnexpectedRedirect(
        f"{answered} and leads to {_shown(target.geturl())}. Tokens and keys are not sent there. "
        f"Use the address at which Girder itself answers{hint} (girder.api-url on scheduler and "
        "workers, dask.api_url in Girder).",
        response=response,
    )


def host_of(url: str) -> str:
    """Return the name of the host of an address, or ``'no host'``."""
    return _split(url).hostname or "no host"


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


def _shown(url: str) -> str:
    """Return an address without the parts that may be secret."""
    parts = _split(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def is_within_api(url: str | None, api: str) -> bool:
    """Return True if an address belongs to an API, by scheme, host, port and path.

    >>> is_within_api('http://girder:8080/api/v1/user', 'http://girder:8080/api/v1')
    True
    >>> is_within_api('http://girder:8080/api/v1/../../x', 'http://girder:8080/api/v1')
    False
    """
    try:
        there, own = urlsplit(url or ""), urlsplit(api)
        same = _origin(there.scheme, there.hostname, there.port) == _origin(
            own.scheme, own.hostname, own.port
        )
    except ValueError:
        return False
    path = unquote(there.path).replace("\\", "/")
    inside = (path + "/").startswith(own.path.rstrip("/") + "/")
    return same and inside and ".." not in path.split("/") and "@" not in there.netloc


def _origin(scheme: str, host: str | None, port: int | None) -> tuple[str, str, int | None]:
    usual = {"http": 80, "https": 443}.get(scheme.lower())
    return scheme.lower(), (host or "").lower().rstrip("."), port or usual
