"""The directory of a stack: its data, its secrets and its logs."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import psutil

from girder_dask import credential
from girder_dask.errors import StackError

__all__ = ["StackDirectory"]

_REAPER_TIMEOUT_S = 30.0


class StackDirectory:
    """The directory of a stack.

    ``state.json`` holds what the next start needs (the administrator's password and key, the
    ports). ``stack.json`` describes what runs now. Only their owner can read them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser().absolute()
        self._lock: int | None = None

    @property
    def stack_file(self) -> Path:
        """The description of what runs now. ``pids`` is empty if nothing does."""
        return self.path / "stack.json"

    @property
    def state_file(self) -> Path:
        """The state that the next start needs."""
        return self.path / "state.json"

    @property
    def credential_file(self) -> Path:
        """The scheduler's API key."""
        return self.path / "credential"

    def part(self, name: str) -> Path:
        """Return the directory of a part's data. It is created if missing, for its owner alone."""
        path = self.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        if path.stat().st_uid == os.getuid():
            path.chmod(0o700)  # a directory that was there before may be open to others
        return path

    def log(self, part: str) -> Path:
        """Return the log file of a part."""
        return self.part("logs") / f"{part}.log"

    def lock(self) -> int:
        """Lock the directory for this process, and return the lock's file descriptor.

        If the launcher of a stack was killed, wait until the reaper has stopped the stack.

        Raises
        ------
        StackError
            If another launcher holds the lock, or the directory cannot be written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as e:
            raise StackError(f"The directory {self.path} cannot be used: {e.strerror}.") from e
        deadline = time.monotonic() + _REAPER_TIMEOUT_S
        while not _try_lock(fd):
            holder = os.pread(fd, 20, 0).decode().strip()
            alive = holder.isdigit() and psutil.pid_exists(int(holder))
            if alive or time.monotonic() > deadline:
                os.close(fd)
                raise StackError(
                    f"A stack already runs in {self.path} (process {holder or 'unknown'}). Stop "
                    "it first, or choose another directory with --dir."
                )
            time.sleep(0.1)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._lock = fd
        return fd

    def unlock(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def load_state(self) -> dict[str, Any]:
        """Return the state that an earlier start saved, or an empty one."""
        try:
            state = json.loads(self.state_file.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as e:
            raise StackError(
                f"{self.state_file}, which holds the administrator's password, is damaged ({e}). "
                "Restore it, or start in a new directory."
            ) from e
        return dict(state)

    def save_state(self, state: dict[str, Any]) -> None:
        """Write ``state.json``."""
        credential.write(self.state_file, json.dumps(state, indent=2))

    def save_stack(self, description: dict[str, Any]) -> None:
        """Write ``stack.json``."""
        credential.write(self.stack_file, json.dumps(description, indent=2))


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
