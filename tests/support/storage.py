"""A MongoDB and a Redis that several stacks share, each stack with its own database."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Self

from girder_dask.standalone import checks, ports, programs
from girder_dask.standalone.reaper import Reaper
from girder_dask.standalone.stack_part import Part

__all__ = ["Storage"]

_POLL_S = 0.05


class Storage:
    """A MongoDB and a Redis for tests that do not break them.

    Parameters
    ----------
    directory
        The directory of data and logs.
    """

    def __init__(self, directory: Path) -> None:
        mongo_port = ports.choose(None)
        redis_port = ports.choose(None, taken=[mongo_port])
        self._mongo = f"mongodb://127.0.0.1:{mongo_port}"
        self._redis = f"redis://127.0.0.1:{redis_port}"
        self._directory = directory
        self._numbers = itertools.count()
        for name in ("mongo", "redis", "scratch"):
            (directory / name).mkdir(parents=True)
        redis = programs.redis_server(directory / "redis", redis_port)
        assert redis is not None, "the tests install a Redis"
        commands = {"mongod": programs.mongod(directory / "mongo", mongo_port), "redis": redis}
        answers = {
            "mongod": lambda: checks.mongo_answers(f"{self._mongo}/admin", timeout=0.2),
            "redis": lambda: checks.redis_answers(self._redis),
        }
        self._parts = [
            Part(
                name,
                command,
                env=dict(os.environ),
                directory=directory / "scratch",
                log=directory / f"{name}.log",
                check=answers[name],
                grace=20,
            )
            for name, command in commands.items()
        ]

    def __enter__(self) -> Self:
        self._lock = os.open(self._directory, os.O_RDONLY)
        self._reaper = Reaper(str(self._directory), self._lock, self._directory / "reaper.log")
        try:
            for part in self._parts:
                part.start(self._reaper)
            for part in self._parts:
                while not part.is_ready():
                    time.sleep(_POLL_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        for part in self._parts:
            part.kill()
        self._reaper.close()
        os.close(self._lock)

    def env(self) -> dict[str, str]:
        """Return the environment variables of another stack, with its own database."""
        return {
            "GIRDER_MONGO_URI": f"{self._mongo}/stack_{next(self._numbers)}",
            "GIRDER_NOTIFICATION_REDIS_URL": self._redis,
        }
