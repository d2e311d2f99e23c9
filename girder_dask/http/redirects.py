"""Answers that lead elsewhere than to the API of Girder.

A token goes only to the API that it is for. Redirects of the API are errors; those of
downloads are followed without the token, and Girder says of each what it leads to.
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

#: The site itself keeps the file there.
ASSETSTORE = "assetstore"
#: A user has said that it is there.
LINK = "link"

_API_PATH = re.compile(r"/api/v\d+/")
_REDIRECTS = range(300, 400)


class ExplainedRequestError(requests.RequestException):
    """An error of a request whose text is written for the owner of the job."""


class UnexpectedRedirect(ExplainedRequestError):
    """Girder's API, or what stands before it, answered with a redirect, which is not followed."""


class LinkRefused(ExplainedRequestError):
    """A link leads where workers may not go."""


class StorageServerError(ExplainedRequestError):
    """A host failed that is not Girder, where the content of a file is.

    The address is not told: it may hold what signs it.

    Parameters
    ----------
    host
        Its name.
    error
        What happened.
    kind
        Whether a link leads there.
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
                f"Girder says that the file is at {host}, which {what}. Ask whoever keeps files "
                "there."
            )
        super().__init__(text, response=response)
        self.host = host
        self.error = error
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.host, self.error, self.kind)


def redirect_target(response: requests.Response) -> str:
    """Return the address to which an answer leads; it may be none."""
    said = response.headers["Location"].encode("latin-1", "replace").decode("utf-8", "replace")
    try:
        return urljoin(response.url, said)
    except ValueError:
        return said


def redirect_kind(response: requests.Response) -> str | None:
    """Return what a redirect of a download leads to, None for any other answer.

    What Girder does not say is taken for a link, as it may be one.
    """
    if not response.is_redirect:
        return None
    said = response.headers.get(KIND_HEADER)
    if said in (ASSETSTORE, LINK):
        return said
    here = _split(response.url).path
    moved = _split(redirect_target(response)).path == here  # the API is at another address
    return LINK if "/download" in here and not moved else None


def refuse_redirect(response: requests.Response) -> None:
    """Raise UnexpectedRedirect if an answer leads elsewhere; one of a download is asked before."""
    if response.status_code not in _REDIRECTS:
        return
    response.close()
    method = getattr(response.request, "method", None) or "GET"
    said = f"{_shown(response.url)} answered {response.status_code} to {method}"
    if "Location" not in response.headers:
        raise UnexpectedRedirect(f"{said}, which is no answer of Girder.", response=response)
    target = _split(redirect_target(response))
    hint = ""
    if target.path == urlsplit(response.url).path and (found := _API_PATH.search(target.path)):
        api = _shown(urlunsplit(target._replace(path=target.path[: found.end() - 1])))
        hint = f": {api} in place of {_shown(response.url)[: -len(target.path) + found.end() - 1]}"
    raise UnexpectedRedirect(
        f"{said} and leads to {_shown(target.geturl())}. Nothing with a token or a key is sent on "
        f"to there. Use the address at which Girder itself answers{hint} (girder.api-url on "
        "scheduler and workers, dask.api_url in Girder).",
        response=response,
    )


def host_of(url: str) -> str:
    """Return the name of the host of an address, in words if it has none."""
    return _split(url).hostname or "no host"


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


def _shown(url: str) -> str:
    """Return an address without what may be a secret in it."""
    parts = _split(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def is_within_api(url: str | None, api: str) -> bool:
    """Say whether an address is one of an API, by scheme, host, port and path.

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
