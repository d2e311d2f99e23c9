"""The pipe by which a container reports its progress."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["ProgressPipe"]

_CHUNK_BYTES = 64 * 1024
_MAX_LINE_BYTES = 4096
_FIELDS = {"total": (int, float), "current": (int, float), "message": (str,)}


class ProgressPipe:
    """A named pipe whose lines become the progress of the job.

    A line is a JSON object with any of ``total``, ``current`` and ``message``, or a number from 0
    to 1, with a text behind it or without. Other lines are ignored: progress alone must not end a
    job.

    Parameters
    ----------
    path
        Where it is created.
    update
        Called with the fields.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> def update(**fields):
    ...     print(fields)
    >>> with ProgressPipe(Path(mkdtemp(), 'progress'), update) as pipe:
    ...     _ = pipe.path.write_text('{"total": 4, "current": 1}\\n0.5 half way\\n')
    ...     _ = pipe.read()
    {'total': 4, 'current': 1}
    {'total': 1.0, 'current': 0.5, 'message': 'half way'}
    """

    def __init__(self, path: Path, update: Callable[..., object]) -> None:
        self.path = path
        self._update = update
        self._line = b""
        os.mkfifo(path)
        # The directory is private. In the container another user may write.
        path.chmod(0o622)
        # Also for writing: so the pipe has no end while the container opens it again and again.
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)
        self.path.unlink(missing_ok=True)

    def fileno(self) -> int:
        """Return the descriptor of the pipe."""
        return self._descriptor

    def read(self) -> bool:
        """Read what has come, and report the last state in it. The pipe never ends."""
        try:
            data = os.read(self._descriptor, _CHUNK_BYTES)
        except BlockingIOError:  # the container has read it
            return True
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[:_MAX_LINE_BYTES]
        for line in lines:
            fields = _fields(line) if len(line) < _MAX_LINE_BYTES else None
            if fields:
                self._update(**fields)
        return True


def _fields(line: bytes) -> dict[str, Any] | None:
    """Return the fields that a line sets, None for a line that is none of progress.

    >>> _fields(b'0.25'), _fields(b'{"current": "x"}'), _fields(b'done')
    ({'total': 1.0, 'current': 0.25}, {}, None)
    """
    text = line.decode("utf-8", "replace").strip()
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return None
        return {
            name: found[name]
            for name, kinds in _FIELDS.items()
            if isinstance(found.get(name), kinds) and not isinstance(found[name], bool)
        }
    number, _, message = text.partition(" ")
    try:
        share = float(number)
    except ValueError:
        return None
    if not math.isfinite(share):
        return None
    more = {"message": message.strip()} if message.strip() else {}
    return {"total": 1.0, "current": min(max(share, 0.0), 1.0), **more}
