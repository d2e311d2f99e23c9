"""The scheduler's credential, an API key that may update Dask jobs alone, and that of metrics."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from girder_dask.errors import GirderError
from girder_dask.protocol.names import SCHEDULER_SCOPE

__all__ = ["NAME", "check_writable", "connect", "create", "revoke_others", "write"]


#: The name of the key in the list of its owner's keys.
NAME = "girder_dask scheduler"


def connect(
    api_url: str,
    *,
    api_key: str | None = None,
    login: str | None = None,
    password: str | None = None,
) -> Any:
    """Return a ``girder_client.GirderClient`` that is logged in.

    Parameters
    ----------
    api_url
        Girder's REST API, for example ``http://girder.example.org/api/v1``.
    api_key
        An API key. Without one, ``login`` and ``password`` are used.
    login, password
        A user's name and password.

    Raises
    ------
    GirderError
        If Girder does not answer or refuses the key or the password.
    """
    from girder_dask.http.girder_client import GirderClient

    client = GirderClient(api_url)

    def authenticate() -> None:
        if api_key:
            # The client's own method puts the key into the URL, which is logged.
            answer = client.post("api_key/token", data={"key": api_key})
            client.setToken(answer["authToken"]["token"])
        else:
            client.authenticate(username=login, password=password)

    what = "the API key" if api_key else f"the login {login!r} with this password"
    _request(api_url, authenticate, refused=f"Girder at {api_url} refuses {what}")
    return client


def create(client: Any, *, name: str = NAME, scope: str = SCHEDULER_SCOPE) -> str:
    """Create an API key whose only scope is to update Dask jobs, or another one.

    Parameters
    ----------
    client
        A ``GirderClient`` of an administrator; see :func:`connect`.
    name
        The name of the key in the list of its owner's keys.
    scope
        What the key may do: ``dask.jobs.update`` or ``dask.metrics.read``.

    Returns
    -------
    str
        The key. Only its owner can see it in Girder.

    Raises
    ------
    GirderError
        If the user is not an administrator, or Girder does not have the dask plugin.
    """
    url = client.urlBase.rstrip("/")
    user = _request(url, lambda: client.get("user/me"), refused="Girder does not return your user")
    if not user or not user.get("admin"):
        who = f"{user['login']} is" if user else "This key or login is"
        raise GirderError(
            f"{who} not an administrator of {url}. The key concerns the jobs of all users, so only "
            "an administrator can create it.",
            status=403,
        )
    key = _request(
        url,
        lambda: client.post(
            "api_key", parameters={"name": name, "scope": f'["{scope}"]', "active": True}
        ),
        refused=f"Girder at {url} created no key",
    )
    return str(key["key"])


def revoke_others(client: Any, key: str, *, name: str = NAME, scope: str = SCHEDULER_SCOPE) -> None:
    """Delete the other keys of the same name and scope, and the tokens made with them.

    A scheduler that has one of them reads its credential file again. So write the new key there
    first.

    Parameters
    ----------
    client
        A ``GirderClient`` of the owner of the keys.
    key
        The key that stays.
    name, scope
        The name and the only scope of the keys.
    """
    for other in client.listResource("api_key"):
        is_same_kind = other["name"] == name and other["scope"] == [scope]
        if is_same_kind and other["key"] != key:
            client.delete(f"api_key/{other['_id']}")


def ask(client: Any, path: str, body: Any) -> Any:
    """Return the answer to a request of an administrator; raises GirderError as :func:`create`."""
    url = client.urlBase.rstrip("/")
    refused = f"Girder at {url} refuses POST {path}"
    return _request(url, lambda: client.post(path, json=body), refused=refused)


def check_writable(path: Path) -> None:
    """Raise GirderError unless :func:`write` can write a file there."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise GirderError(f"{path} cannot be written: there is no directory {folder}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise GirderError(
            f"{path} cannot be written: this account must not create files in {folder}."
        )
    if path.exists() and os.getuid() not in (0, path.stat().st_uid):
        raise GirderError(
            f"{path} cannot be written: it is another account's. Run the command as that account "
            "or as root."
        )


def write(path: Path, key: str) -> None:
    """Write a secret atomically to a file that only its owner can read.

    A file that is there keeps its owner and its group, so that root can replace the secret of a
    service.

    Raises
    ------
    OSError
        If it cannot be written. A file that is there stays as it is.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
            with contextlib.suppress(FileNotFoundError):
                there = path.stat()
                if (there.st_uid, there.st_gid) != (os.getuid(), os.getgid()):
                    os.fchown(f.fileno(), there.st_uid, there.st_gid)
            f.write(key + "\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _request(url: str, call: Callable[[], Any], refused: str) -> Any:
    """Make a request, and translate its errors into messages that say what to do."""
    import girder_client
    import requests

    from girder_dask.http.authorities import certificate_refusal
    from girder_dask.http.redirects import ExplainedRequestError
    from girder_dask.http.request_errors import error_cause, error_message

    try:
        return call()
    except ExplainedRequestError as e:
        raise GirderError(str(e)) from e
    except girder_client.AuthenticationError as e:
        raise GirderError(f"{refused}.", status=401) from e
    except girder_client.HttpError as e:
        text = e.responseText or ""
        if "Invalid scopes" in text:
            raise GirderError(
                f"Girder at {url} does not have the dask plugin, which defines the scope of the "
                "key, or an older one. Run pip install --upgrade 'girder_dask[girder]' in Girder's "
                "environment and restart Girder.",
                status=e.status,
            ) from e
        if e.status == 404:
            raise GirderError(
                f"{url} is not Girder's REST API. Its address usually ends in /api/v1.", status=404
            ) from e
        message = error_message(e.response, str(text or e)[:300])
        raise GirderError(f"{refused} (HTTP {e.status}): {message}", status=e.status) from e
    except requests.exceptions.JSONDecodeError as e:
        raise GirderError(
            f"{url} is not Girder's REST API: its answer is not JSON. Its address usually ends in "
            "/api/v1."
        ) from e
    except (requests.exceptions.RequestException, OSError) as e:
        refusal = certificate_refusal(e, url)
        raise GirderError(refusal or f"Girder cannot be reached at {url}: {error_cause(e)}.") from e
