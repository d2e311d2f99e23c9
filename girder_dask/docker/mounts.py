"""Paths among the arguments of a container: which are bound, and where it finds them."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from girder_dask.docker.plan import Mount
from girder_dask.errors import ContainerError

__all__ = ["INPUTS", "ArgumentResolver", "being_written", "make_readable"]

#: Where a container finds its inputs, each in a directory of its own.
INPUTS = "/inputs"

_MAX_CHARACTERS = 128 * 1024
# Directories into which containers write now. Their paths may turn into links at any time.
_written: set[str] = set()
_lock = threading.Lock()


@contextmanager
def being_written(directory: Path) -> Iterator[None]:
    """Mount nothing of a directory into other containers during the block."""
    path = os.path.realpath(directory)
    with _lock:
        _written.add(path)
    try:
        yield
    finally:
        with _lock:
            _written.discard(path)


class ArgumentResolver:
    """Conversion of arguments to text, with paths of the host replaced by those in the container.

    Text is a path if it begins with one of the directories. A ``Path`` is always one.

    Parameters
    ----------
    inputs
        The beginning of the paths of fetched inputs, which no container can change; None outside
        of a job.
    roots
        The directories of which files may be bound: that of the job, and those that the operator
        allows.
    any_path
        Whether any ``Path`` may be bound, as outside of a job.

    Attributes
    ----------
    mounts
        The files and directories to bind.
    """

    def __init__(self, inputs: str | None, roots: Sequence[str], *, any_path: bool = False) -> None:
        self._inputs = inputs
        self._roots = [root.rstrip("/") or "/" for root in roots]
        self._any_path = any_path
        self._targets: dict[str, str] = {}
        self.mounts: list[Mount] = []

    def arguments(self, values: Sequence[Any]) -> list[str]:
        """Return the arguments of a container. A list among them is joined to one argument."""
        if isinstance(values, str):
            raise ContainerError(
                f"args={values!r:.200} is one text. Give a list with an element for each argument, "
                "such as ['--level', 3].",
                permanent=True,
            )
        return [self._joined(value, f"args[{n}]") for n, value in enumerate(values)]

    def variables(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Return environment variables."""
        for name in values:
            if not (isinstance(name, str) and name.isidentifier() and name.isascii()):
                raise ContainerError(
                    f"env has {name!r:.100}, which is not the name of a variable.", permanent=True
                )
        return {name: self._joined(value, f"env[{name!r}]") for name, value in values.items()}

    def _joined(self, value: Any, where: str) -> str:
        parts = value if isinstance(value, (list, tuple)) else [value]
        text = "".join(self._text(part, where) for part in parts)
        if "\0" in text or len(text) > _MAX_CHARACTERS:
            raise ContainerError(
                f"{where} has a zero byte or more than {_MAX_CHARACTERS:,} characters, which no "
                "command can be given. Pass it as a file.",
                permanent=True,
            )
        _check_utf8(text, where)
        return text

    def _text(self, value: Any, where: str) -> str:
        if isinstance(value, (str, os.PathLike)):
            return self._bound(value, where)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
        raise ContainerError(
            f"{where} is {value!r:.200}, and a command takes text, numbers and paths. Convert it "
            "with str().",
            permanent=True,
        )

    def _bound(self, value: str | os.PathLike[Any], where: str) -> str:
        """Return the path in the container for one of the host; other text unchanged."""
        path = os.fsdecode(value)
        is_path = not isinstance(value, str)
        if not path.startswith("/") and not is_path:
            return path
        source = self._source(os.path.abspath(path) if is_path else path)  # noqa: PTH100
        if source is None and is_path and self._any_path:
            source = os.path.realpath(path)
        if source is None and is_path:
            raise ContainerError(
                f"{where} is {path!r:.200}, which a container may not have: it is not among the "
                "inputs and not in the directory of the job. Copy it into "
                "current_job().work_dir, or ask the operator to allow its directory in "
                "girder.docker.volumes.",
                permanent=True,
            )
        if source is None:
            return path
        if not os.path.lexists(source):
            raise ContainerError(f"{where} is {path!r:.200}, and there is no such file.")
        return self._target(path, source)

    def _source(self, path: str) -> str | None:
        """Return the path to bind, with links resolved. None if it may not be bound."""
        if os.path.normpath(path) != path.rstrip("/"):
            return None
        if self._inputs is not None and path.startswith(self._inputs):
            return os.path.realpath(path)  # a link there is one to a file of Girder
        real = os.path.realpath(path)
        for root in self._roots:
            if _is_below(path, root) and _is_below(real, os.path.realpath(root)):
                self._check_stable(real)
                return real
        return None

    def _check_stable(self, real: str) -> None:
        with _lock:
            if any(_is_below(real, each) or _is_below(each, real) for each in _written):
                raise ContainerError(
                    f"{real!r:.200} is being written by another container of this worker. Wait for "
                    "its end, or copy the file first."
                )

    def _target(self, path: str, source: str) -> str:
        _check_utf8(source, "A file")
        if path not in self._targets:
            name = os.path.basename(path.rstrip("/"))  # noqa: PTH119
            self._targets[path] = f"{INPUTS}/{len(self._targets) + 1}/{name}"
            self.mounts.append(Mount(source, self._targets[path]))
        return self._targets[path]


def _check_utf8(text: str, where: str) -> None:
    """Raise ContainerError for text that an engine would change: its API takes UTF-8 alone."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise ContainerError(
            f"{where} is {text!r:.200}, which is not UTF-8, as container engines want text. Rename "
            "the file, or pass the text in a file.",
            permanent=True,
        ) from e


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(f"{root.rstrip('/')}/")


def make_readable(path: str) -> None:
    """Let every user of a container read a file or directory of the job, which root owns."""
    for parent, _, files in os.walk(path):
        _add_mode(parent, 0o555)
        for name in files:
            _add_mode(f"{parent}/{name}", 0o444)
    if not os.path.isdir(path):  # noqa: PTH112
        _add_mode(path, 0o444)


def _add_mode(path: str, mode: int) -> None:
    found = os.lstat(path)
    if not stat.S_ISLNK(found.st_mode) and found.st_mode & mode != mode:
        os.chmod(path, stat.S_IMODE(found.st_mode) | mode)  # noqa: PTH101
