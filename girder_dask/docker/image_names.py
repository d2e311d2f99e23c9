"""Names of images, and which of them a job may run."""

from __future__ import annotations

import re
from collections.abc import Sequence

from girder_dask.errors import ContainerError

__all__ = ["check_name", "full_name", "matches"]

_NAME = re.compile(r"[A-Za-z0-9][\w.:/@+-]*", re.ASCII)
_MAX_CHARACTERS = 255
_DEFAULT_REGISTRY = "docker.io"


def check_name(image: object) -> str:
    """Return the name of an image.

    Raises
    ------
    ContainerError
        If it is none.
    """
    is_name = isinstance(image, str) and _NAME.fullmatch(image) and ".." not in image
    if not is_name or len(str(image)) > _MAX_CHARACTERS:
        raise ContainerError(
            f"{image!r:.300} is not the name of an image. Give one such as 'busybox:1.36' or "
            "'ghcr.io/site/tool@sha256:…'.",
            permanent=True,
        )
    return str(image)


def matches(image: str, patterns: Sequence[str]) -> bool:
    """Return True if an image is one of those that patterns name.

    ``*`` stands for any characters but ``/``, and ``**`` for any characters. A pattern without a
    tag matches all tags. As for Docker, a name without a registry is one of ``docker.io``.

    >>> matches('busybox', ['docker.io/library/busybox']), matches('a.org/x/y:2', ['a.org/**:1'])
    (True, False)
    >>> matches('busybox.evil.org/x', ['busybox*'])
    False
    """
    name, suffix = _split(image)
    for pattern in patterns:
        wanted, wanted_suffix = _split(pattern)
        if _expression(wanted).fullmatch(name) and (
            not wanted_suffix or _expression(wanted_suffix).fullmatch(suffix or ":latest")
        ):
            return True
    return False


def full_name(image: str) -> str:
    """Return the name of an image with its registry, which an engine takes for no id of an image.

    >>> full_name('busybox:1.36'), full_name('0f1e2d3c'), full_name('a.org/x')
    ('docker.io/library/busybox:1.36', 'docker.io/library/0f1e2d3c', 'a.org/x')
    """
    return "".join(_split(image))


def _split(reference: str) -> tuple[str, str]:
    """Return the full name of an image, and its tag and digest with their separators.

    >>> _split('busybox:1.36'), _split('localhost:5000/x')
    (('docker.io/library/busybox', ':1.36'), ('localhost:5000/x', ''))
    """
    bare, at, digest = reference.partition("@")
    path, slash, last = bare.rpartition("/")
    last, colon, tag = last.partition(":")
    name = f"{path}{slash}{last}"
    first = name.partition("/")[0]
    is_host = "." in first or ":" in first or first in ("localhost", "*", "**")
    # Names of repositories have no capital letters, so engines take such a word for a host.
    has_registry = slash and (is_host or first != first.lower())
    if not has_registry:
        name = f"{_DEFAULT_REGISTRY}/{name}" if slash else f"{_DEFAULT_REGISTRY}/library/{name}"
    return name, f"{colon}{tag}{at}{digest}"


def _expression(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*|\*)", pattern)
    wild = {"*": "[^/]*", "**": ".*"}
    return re.compile("".join(wild.get(part) or re.escape(part) for part in parts))
