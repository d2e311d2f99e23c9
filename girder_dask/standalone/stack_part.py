"""One part of the stack: a database, Girder, a scheduler or a worker, as one process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from girder_dask.errors import StackError
from girder_dask.standalone.reaper import Reaper

__all__ = ["Part", "tail"]

_TAIL_BYTES = 64 * 1024


class Part:
    """One process of the stack: its command, its health check and its end.

    Parameters
    ----------
    name
        Its name in ``stack.json`` and in messages.
    command
        The program with its arguments.
    env
        Its whole environment.
    directory
        Its working directory.
    log
        The file for its output. The file of the previous run is kept beside it as ``.1``, as is
        the content of a file that grew too large; a process that is restarted within a run appends
        to the same file.
    check
        Health check: returns True once the part works. Called repeatedly until then.
    timeout
        Seconds in which the part must become ready.
    grace
        Seconds between SIGTERM and SIGKILL.
    hints
        Advice by text that may occur in the log of a failed start.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        directory: Path,
        log: Path,
        check: Callable[[], bool],
        timeout: float = 60,
        grace: float = 5,
        hints: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.command = list(command)
        self.env = dict(env)
        self.directory = directory
        self.log = log
        self.timeout = timeout
        self.grace = grace
        self.hints = dict(hints or {})
        self.started_at = 0.0
        self._check = check
        self._process: subprocess.Popen[bytes] | None = None
        self._is_cleared = False

    def __repr__(self) -> str:
        return f"<Part {self.name} pid={self.pid}>"

    @property
    def pid(self) -> int | None:
        """The process id, or None before the first start."""
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """The exit code of a process that has ended; negative if a signal ended it."""
        return self._process.poll() if self._process else None

    @property
    def running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_worker(self) -> bool:
        """Whether this part is a worker."""
        return self.name.startswith("worker-")

    def start(self, reaper: Reaper | None = None, *, again: bool = False) -> None:
        """Start the process as the leader of its own session and process group.

        Ctrl-C on the terminal then interrupts the launcher alone, which stops the parts in order.

        Parameters
        ----------
        reaper
            Where the process is registered.
        again
            Append to the log of the previous process, after a line that marks the restart.
        """
        if self.log.exists() and not again:
            self.log.replace(self.log.with_name(self.log.name + ".1"))
        self.started_at = time.monotonic()
        try:
            with open(self.log, "ab", opener=_private) as log:
                os.fchmod(log.fileno(), 0o600)
                if again:
                    log.write(f"--- {self.name} restarts\n".encode())
                    log.flush()
                self._process = subprocess.Popen(
                    self.command,
                    env=self.env,
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    # Files of tasks belong to the user; those of the stack are private.
                    umask=-1 if self.is_worker else 0o077,
                )
        except OSError as e:
            raise StackError(
                f"{self.name} cannot be started: {self.command[0]}: {e.strerror}."
            ) from e
        self._is_cleared = False
        if reaper is not None:
            reaper.watch(self._process.pid)

    def is_ready(self) -> bool:
        """Return True if the part works.

        Raises
        ------
        StackError
            If it has ended or is not ready in time. The message has its last log lines.
        """
        if not self.running:
            raise StackError(self.describe_end("ended while starting"))
        if self._check():
            return True
        if time.monotonic() - self.started_at > self.timeout:
            raise StackError(self.describe_end(f"was not ready within {self.timeout:.0f} s"))
        return False

    def terminate(self) -> None:
        """Send SIGTERM to the process."""
        if self.running and self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill the rest of the process group and reap the process."""
        if self._process is None or self._is_cleared:
            return
        # While a member lives, the group keeps its number. Later another group may get it, so the
        # group is killed once.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._is_cleared = True

    def limit_log(self, max_bytes: int) -> None:
        """Move the content of a log that has grown too large beside it, as ``.1``.

        The process goes on to append to the same file. What it writes between the copy and the
        truncation is lost, which is a matter of milliseconds.
        """
        try:
            is_too_large = self.log.stat().st_size > max_bytes
        except FileNotFoundError:
            return
        if not is_too_large:
            return
        partial, rotated = (self.log.with_name(f"{self.log.name}.{end}") for end in ("part", "1"))
        with self.log.open("rb") as log, open(partial, "wb", opener=_private) as copy:
            shutil.copyfileobj(log, copy)
        os.truncate(self.log, 0)
        partial.replace(rotated)

    def describe_end(self, what: str) -> str:
        """Return a message with the end of the log and the hints that match it."""
        code = self.exit_code
        if code is None:
            how = ""
        elif code < 0:
            how = f" (killed by {signal.Signals(-code).name})"
        else:
            how = f" (exit code {code})"
        lines = tail(self.log)
        text = [f"{self.name} {what}{how}."]
        if lines:
            text.append(f"The end of {self.log}:")
            text += [f"    {line}" for line in lines]
        else:
            text.append(f"It wrote nothing to {self.log}.")
        whole = "\n".join(lines)
        text += [hint for sign, hint in self.hints.items() if sign in whole]
        return "\n".join(text)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def tail(log: Path, lines: int = 20, *, leave_out: re.Pattern[str] | None = None) -> list[str]:
    """Return the last lines of a log file, those of mongod made readable.

    Lines in which ``leave_out`` matches do not count.
    """
    try:
        with log.open("rb") as f:
            f.seek(max(0, f.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = f.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    kept = [x for x in text.splitlines() if leave_out is None or not leave_out.search(x)]
    return [_readable(line) for line in kept[-lines:]]


def _readable(line: str) -> str:
    if not line.startswith('{"t":'):
        return line
    try:
        record = json.loads(line)
        details = json.dumps(record["attr"]) if record.get("attr") else ""
        return f"{record['t']['$date']} {record['s']} {record['msg']} {details}".rstrip()[:300]
    except (ValueError, KeyError, TypeError):
        return line
