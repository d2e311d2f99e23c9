"""Reads of the ``girder:`` part of Dask's configuration.

The defaults, with a comment on each, are in ``girder_dask.yaml`` beside this module.
Nothing is read at import: call :func:`get`, :func:`seconds` or :func:`nbytes` where a
value is needed. Dask itself is imported then, so that importing tasks stays quick.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from girder_dask.errors import GirderDaskError

__all__ = ["credential", "get", "nbytes", "seconds", "seconds_or_none"]


@functools.cache
def _load_defaults() -> None:
    import dask.config
    import yaml

    with (Path(__file__).parent / "girder_dask.yaml").open() as f:
        dask.config.update_defaults(yaml.safe_load(f))


def get(key: str) -> Any:
    """Return the value of ``girder.<key>``.

    >>> get("worker.log-level")
    'INFO'
    """
    import dask.config

    _load_defaults()
    return dask.config.get(f"girder.{key}")


def seconds(key: str) -> float:
    """Return a time span of the configuration in seconds.

    >>> seconds("scheduler.flush-interval")
    0.1
    """
    from dask.utils import parse_timedelta

    return float(parse_timedelta(get(key), default="s"))


def seconds_or_none(key: str) -> float | None:
    """Return a time span of the configuration in seconds, None where it is null.

    >>> seconds_or_none("scheduler.no-worker-timeout") is None
    True
    """
    return None if get(key) is None else seconds(key)


def nbytes(key: str) -> int:
    """Return a size of the configuration in bytes.

    >>> nbytes("worker.max-result")
    1048576
    """
    from dask.utils import parse_bytes

    return int(parse_bytes(get(key)))


def credential() -> str | None:
    """Return the scheduler's API key, from ``credential`` or the file ``credential-file`` names.

    Raises
    ------
    GirderDaskError
        If the file cannot be read.
    """
    value = get("credential")
    if value:
        return str(value)
    path = get("credential-file")
    if not path:
        return None
    try:
        return Path(path).expanduser().read_text().strip()
    except OSError as e:
        raise GirderDaskError(
            f"The scheduler's credential cannot be read from {path} ({e.strerror}). Make one "
            "with 'girder-dask credential --output FILE' and point girder.credential-file at it."
        ) from e
