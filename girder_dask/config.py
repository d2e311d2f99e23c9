"""Access to the ``girder:`` section of Dask's configuration.

The defaults, each with a comment, are in ``girder_dask.yaml`` beside this module. They are
registered with Dask when this module is imported after Dask, otherwise at the first read, which
keeps the import of tasks fast. A value that ``dask.config.set`` or ``dask.config.refresh`` has
removed is read from the defaults.
"""

from __future__ import annotations

import functools
import math
import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from girder_dask.errors import GirderDaskError

__all__ = [
    "check",
    "choice",
    "credential",
    "credential_file_problem",
    "forget_credential",
    "get",
    "names",
    "nbytes",
    "positive_or_none",
    "seconds",
    "seconds_or_none",
]

_NAMESPACE = "girder"
_UNSET = object()
# Numbers that have a default, but may be null.
_POSITIVE_OR_NULL = ("scheduler.jobs-per-thread",)


@functools.cache
def _defaults() -> dict[str, Any]:
    import yaml

    defaults: dict[str, Any] = yaml.safe_load(
        (Path(__file__).parent / "girder_dask.yaml").read_text(encoding="utf-8")
    )
    return defaults


def _register_defaults() -> None:
    """Register the defaults with Dask once, and restore those that its configuration lacks."""
    import dask.config

    if not any(registered is _defaults() for registered in dask.config.defaults):
        dask.config.update_defaults(_defaults())
    elif _NAMESPACE not in dask.config.config:
        # The exit of a `dask.config.set` that first named the namespace removes all of it.
        dask.config.update(dask.config.config, _defaults(), priority="old")


def get(key: str) -> Any:
    """Return the value of ``girder.<key>``.

    Raises
    ------
    KeyError
        If there is no such setting.

    Examples
    --------
    >>> get("worker.log-level")
    'INFO'
    """
    import dask.config

    _register_defaults()
    name = f"{_NAMESPACE}.{key}"
    value = dask.config.get(name, default=_UNSET)
    # A section that was set as a whole, {"girder": {"worker": {…}}}, lacks the other keys.
    return dask.config.get(name, config=_defaults()) if value is _UNSET else value


def seconds(key: str) -> float:
    """Return a configured duration in seconds.

    >>> seconds("scheduler.flush-interval")
    0.1
    """
    from dask.utils import parse_timedelta

    return float(parse_timedelta(get(key), default="s"))


def seconds_or_none(key: str) -> float | None:
    """Return a configured duration in seconds, or None if it is null.

    >>> seconds_or_none("scheduler.no-worker-timeout") is None
    True
    """
    return None if get(key) is None else seconds(key)


def positive_or_none(key: str) -> float | None:
    """Return a configured number above 0, or None if it is null.

    Raises
    ------
    GirderDaskError
        If it is no such number.

    Examples
    --------
    >>> positive_or_none("scheduler.jobs-per-thread")
    4.0
    """
    value = get(key)
    if value is None:
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise GirderDaskError(
            f"girder.{key} is {value!r:.100} in Dask's configuration. Set it to a number above 0, "
            "or to null."
        )
    return float(value)


def choice(key: str, allowed: Sequence[str]) -> str:
    """Return a configured value that must be one of the ``allowed`` ones.

    Raises
    ------
    GirderDaskError
        If it is not one of them.

    Examples
    --------
    >>> choice("worker.isolation", ["thread", "process"])
    'thread'
    """
    value = get(key)
    if value not in allowed:
        raise GirderDaskError(
            f"girder.{key} is {value!r:.100} in Dask's configuration. Set it to "
            f"{' or '.join(allowed)}."
        )
    return str(value)


def names(key: str) -> list[str]:
    """Return a configured list of names. Text is split at commas.

    Raises
    ------
    GirderDaskError
        If it is not a list of names.

    Examples
    --------
    >>> names("worker.preimport")
    []
    """
    value = get(key)
    if value is None:
        return []
    found = value.split(",") if isinstance(value, str) else value
    if not isinstance(found, (list, tuple)) or not all(isinstance(name, str) for name in found):
        raise GirderDaskError(
            f"girder.{key} is {value!r:.100} in Dask's configuration. Set it to a list of "
            "names, such as [numpy, my_tasks]."
        )
    return [name.strip() for name in found if name.strip()]


def nbytes(key: str) -> int:
    """Return a configured size in bytes.

    >>> nbytes("worker.max-result")
    1048576
    """
    from dask.utils import parse_bytes

    return int(parse_bytes(get(key)))


def check(section: str) -> None:
    """Check that the durations, sizes and numbers of a section can be read.

    Raises
    ------
    GirderDaskError
        If one cannot.

    Examples
    --------
    >>> check("scheduler")
    """
    for name, default in _defaults()[_NAMESPACE][section].items():
        key = f"{section}.{name}"
        if key in _POSITIVE_OR_NULL:
            positive_or_none(key)
            continue
        reader = _reader(default)
        if reader is None:
            continue
        value = get(key)
        try:
            is_valid = reader(value) >= 0
        except (KeyError, TypeError, ValueError):
            is_valid = False
        if not is_valid:
            raise GirderDaskError(
                f"{_NAMESPACE}.{key} is {value!r:.100} in Dask's configuration. Set it to a value "
                f"such as {default}, its default."
            )


def _reader(default: Any) -> Callable[[Any], float] | None:
    """Return the function that reads a duration, a size or a number, by its default."""
    from dask.utils import parse_bytes, parse_timedelta

    if isinstance(default, int):
        return int
    if not isinstance(default, str) or not default[:1].isdigit():
        return None
    try:
        parse_bytes(default)
    except ValueError:
        return lambda value: float(parse_timedelta(value, default="s"))
    return parse_bytes


def credential() -> str | None:
    """Return the scheduler's API key: ``credential``, or the content of ``credential-file``.

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
            f"The scheduler's credential cannot be read from {path} ({e.strerror}). Create "
            "one with 'girder-dask credential --output FILE' and set girder.credential-file to it."
        ) from e


def credential_file_problem() -> str | None:
    """Return why others can read the file of ``credential-file``, None if they cannot.

    The group of this process may read a file of root, as Kubernetes mounts secrets.
    """
    path = get("credential-file")
    if get("credential") or not path:
        return None
    try:
        found = Path(path).expanduser().stat()
    except OSError:
        return None  # credential() names it
    is_mounted = found.st_uid == 0 and found.st_gid == os.getegid()
    refused = (stat.S_IWGRP if is_mounted else stat.S_IRWXG) | stat.S_IRWXO
    if not found.st_mode & refused:
        return None
    return f"{path} has mode {stat.S_IMODE(found.st_mode):o}"


def forget_credential() -> bool:
    """Remove an API key from the configuration and the environment of this process.

    Returns
    -------
    bool
        True if there was one.
    """
    import dask.config

    was_there = bool(get("credential"))
    if was_there:
        dask.config.set({f"{_NAMESPACE}.credential": None})
    return os.environ.pop("DASK_GIRDER__CREDENTIAL", None) is not None or was_there


if "dask" in sys.modules:
    _register_defaults()
