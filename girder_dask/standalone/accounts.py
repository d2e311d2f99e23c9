"""The administrator, the API keys and the assetstore of a new Girder."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from girder_dask import credential
from girder_dask.errors import GirderError, StackError

__all__ = ["ensure_administrator", "ensure_api_key", "ensure_assetstore", "ensure_credential"]

_LOGIN = "admin"
_KEY_NAME = "girder_dask standalone"
_FILESYSTEM = 0


def ensure_administrator(api: str, state: dict[str, Any]) -> Any:
    """Log in as the administrator in ``state``, or create the first user of this Girder.

    Sets ``login`` and ``password`` of ``state`` and returns a ``GirderClient``.
    """
    import girder_client

    from girder_dask.http.girder_client import GirderClient

    if state.get("login"):
        try:
            return credential.connect(api, login=state["login"], password=state["password"])
        except GirderError as e:
            if e.status != 401:
                raise
    client = GirderClient(api)
    password = secrets.token_urlsafe(12)
    try:
        user = client.post(
            "user",
            # In the body, since Girder logs the URL.
            data={
                "login": _LOGIN,
                "email": "admin@example.org",
                "firstName": "Site",
                "lastName": "Administrator",
                "password": password,
            },
        )
    except girder_client.HttpError as e:
        raise StackError(_not_ours(api)) from e
    client.setToken(user["authToken"]["token"])
    if not user["admin"]:
        client.delete(f"user/{user['_id']}")
        raise StackError(_not_ours(api))
    state["login"], state["password"] = _LOGIN, password
    # These keys belong to another database.
    state.pop("api_key", None)
    state.pop("credential", None)
    return client


def _not_ours(api: str) -> str:
    return (
        f"The database of Girder at {api} already has users, but this directory has no login of "
        "an administrator. Name an empty database in GIRDER_MONGO_URI (the part after the last "
        "/), or use the directory that the database was created with."
    )


def ensure_api_key(api: str, client: Any, state: dict[str, Any]) -> None:
    """Set ``api_key`` of ``state`` to a valid key with all rights of the administrator."""
    if not _is_valid(api, state.get("api_key")):
        state["api_key"] = client.post("api_key", parameters={"name": _KEY_NAME})["key"]


def ensure_credential(api: str, client: Any, path: Path) -> None:
    """Write the scheduler's credential to ``path`` unless the file holds a valid one."""
    known = path.read_text().strip() if path.exists() else None
    if not _is_valid(api, known):
        key = credential.create(client)
        credential.write(path, key)
        credential.revoke_others(client, key)


def ensure_assetstore(client: Any, root: Path) -> None:
    """Create a filesystem assetstore in ``root`` unless there is one."""
    if any(a.get("root") == str(root) for a in client.get("assetstore")):
        return
    parameters = {"name": root.name, "type": _FILESYSTEM, "root": str(root)}
    client.post("assetstore", parameters=parameters)


def _is_valid(api: str, key: str | None) -> bool:
    if not key:
        return False
    try:
        credential.connect(api, api_key=key)
    except GirderError as e:
        if e.status is None:
            raise
        return False
    return True
