"""Images in a container engine: their digests, and how they get there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from girder_dask.docker.engine_api import EngineApi, EngineRefusal
from girder_dask.errors import ContainerError

__all__ = ["Image", "ensure"]

_NOT_FOUND = 404


@dataclass(frozen=True, slots=True)
class Image:
    """An image that the engine has.

    Attributes
    ----------
    id
        Its id in the engine, by which a container is made of exactly this image.
    digest
        ``name@sha256:…`` as the registry knows it, or the id of an image that has no registry.
    """

    id: str
    digest: str


def ensure(api: EngineApi, name: str, policy: str, report: Callable[..., object]) -> Image:
    """Return an image, which is pulled first if the policy says so.

    Parameters
    ----------
    policy
        ``'missing'``, ``'never'`` or ``'always'``.
    report
        Called with the progress of a pull: ``total``, ``current`` and ``message``.

    Raises
    ------
    ContainerError
        If the engine does not have the image, and cannot pull it.
    """
    found = None if policy == "always" else _find(api, name)
    if found is not None:
        return found
    if policy == "never":
        raise ContainerError(
            f"The container engine of this worker does not have the image {name}, and pulls none "
            f"(girder.docker.pull: never). Ask the operator to load it: docker pull {name}.",
            permanent=True,
        )
    _pull(api, name, report)
    found = _find(api, name)
    if found is None:
        raise ContainerError(f"The image {name} was pulled, but the engine does not have it.")
    return found


def _find(api: EngineApi, name: str) -> Image | None:
    try:
        found = api.call("GET", f"/images/{quote(name)}/json")
    except EngineRefusal as e:
        if e.status != _NOT_FOUND:
            raise
        return None
    identifier = str(found["Id"])
    if ":" not in identifier:
        identifier = f"sha256:{identifier}"
    digests = found.get("RepoDigests") or ()
    return Image(identifier, str(digests[0]) if digests else identifier)


def _pull(api: EngineApi, name: str, report: Callable[..., object]) -> None:
    print(f"Pulling the image {name}.")
    _, _, last = name.rpartition("/")
    has_version = ":" in last or "@" in last
    query = {"fromImage": name if has_version else f"{name}:latest"}
    layers: dict[str, tuple[int, int]] = {}
    try:
        for line in api.lines("POST", "/images/create", query):
            if line.get("error"):
                raise EngineRefusal(str(line["error"]))
            _note_layer(layers, line)
            if layers:
                done, total = (sum(sizes) for sizes in zip(*layers.values(), strict=True))
                report(total=total, current=done, message=f"Pulling the image {name}")
    except EngineRefusal as e:
        raise ContainerError(
            f"The image {name} is not on this worker, and cannot be pulled: {e}. Check its name; "
            "for an image that is private, or a worker without internet, ask the operator to load "
            "it into the engine."
        ) from e
    if layers:
        report(total=0, current=0, message="")


def _note_layer(layers: dict[str, tuple[int, int]], line: Mapping[str, Any]) -> None:
    """Note how much of a layer is there. The message says so while it is downloaded."""
    detail = line.get("progressDetail")
    if line.get("status") == "Downloading" and isinstance(detail, dict) and detail.get("total"):
        layers[str(line.get("id"))] = int(detail.get("current", 0)), int(detail["total"])
