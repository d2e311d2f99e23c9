"""Another Girder with girder_dask: its processes, beside those of a stack, and its set-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from girder_dask.standalone import accounts, marked_processes
from girder_dask.standalone.directory import StackDirectory
from girder_dask.standalone.plan import Plan
from girder_dask.standalone.stack_part import Part

__all__ = ["OwnSite"]

_HOST = "127.0.0.1"


class OwnSite:
    """A Girder with girder_dask and girder_worker's plugin, and the processes that it needs.

    Parameters
    ----------
    name
        Its name, with which those of its processes begin.
    directory
        The directory of its files.
    env
        The environment of all its processes, with the database and the broker of Girder's
        notifications.
    mark
        What marks the processes as those of the other stack.
    broker
        Where Girder sends girder_worker's tasks.
    """

    def __init__(
        self, name: str, directory: Path, env: Mapping[str, str], mark: str, broker: str
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.prefix = f"{name}-"
        self._directory = StackDirectory(directory)
        self._mark = mark
        self._plan = Plan(
            self._directory,
            env=env,
            girder_env={"BENCHMARK_PLUGIN": "dask", "GIRDER_WORKER_BROKER": broker},
            worker_env={},
            host=_HOST,
            wanted={},
            before={},
        )
        self.api = self._plan.api

    @property
    def port(self) -> int:
        """The port of Girder."""
        return self._plan.ports["girder"]

    def girder(self, command: Sequence[str]) -> Part:
        """Return Girder, with another command."""
        part = self._own(self._plan.girder_part())
        part.command = list(command)
        return part

    def prepare(self) -> Any:
        """Set up the started Girder, and return a client of its administrator."""
        state: dict[str, str] = {}
        client = accounts.ensure_administrator(self.api, state)
        accounts.ensure_assetstore(client, self._directory.part("assetstore"))
        accounts.ensure_credential(self.api, client, self._directory.credential_file)
        return client

    def cluster(self, workers: int) -> list[Part]:
        """Return the scheduler and its workers, of one thread each."""
        parts = [self._plan.scheduler_part(), *self._plan.worker_parts(workers, threads=1)]
        return [self._own(part) for part in parts]

    def _own(self, part: Part) -> Part:
        part.name = f"{self.prefix}{part.name}"
        part.env[marked_processes.MARK] = self._mark
        return part
