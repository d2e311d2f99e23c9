"""A site that has both RabbitMQ with a worker of Celery, and Dask, and switches between them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest

from girder_dask.celery import BROKER_URL
from girder_dask.standalone import marked_processes
from girder_dask.standalone.stack_part import Part
from tests.support import rabbitmq
from tests.support.celery_site import CelerySite

__all__ = ["SwitchSite"]

_POLL_S = 0.02
_NEEDS = (
    "This test needs RabbitMQ: apt-get install --no-install-recommends rabbitmq-server "
    "(scripts/bootstrap test does)"
)


class SwitchSite(CelerySite):
    """A stack whose Girder sends girder_worker's tasks to RabbitMQ, and to Dask after a switch.

    One worker of each kind runs all the time, each with one task at once.
    """

    def __init__(self, directory: Path, **options: Any) -> None:
        if rabbitmq.program() is None:
            pytest.skip(_NEEDS)
        home = directory / "rabbitmq"
        home.mkdir(parents=True)
        env = {**os.environ, marked_processes.MARK: str(directory)}
        self._rabbit = rabbitmq.Rabbit(home, env)
        self._celery_env = {
            **env,
            "GIRDER_WORKER_BROKER": self._rabbit.broker,
            "GIRDER_WORKER_BACKEND": self._rabbit.backend,
            "C_FORCE_ROOT": "1",
        }
        self._brokers = {"RabbitMQ": self._rabbit.broker, "Dask": BROKER_URL}
        self._broker = "RabbitMQ"
        girder_env = {
            "GIRDER_WORKER_BROKER": self._rabbit.broker,
            "GIRDER_WORKER_BACKEND": self._rabbit.backend,
        }
        super().__init__(directory, girder_env=girder_env, threads=1, **options)

    def switch(self, broker: Literal["RabbitMQ", "Dask"]) -> None:
        """Restart Girder with the variable that names a broker, unless it has that already."""
        if broker == self._broker:
            return
        girder = self.part("girder")
        self._ended.add(girder.name)
        self._stop_together([girder])
        girder.env["GIRDER_WORKER_BROKER"] = self._brokers[broker]
        self.start_again(girder)
        while not girder.is_ready():
            time.sleep(_POLL_S)
        self._broker = broker

    def _start_parts(self) -> None:
        for part in self._rabbit.parts(self._directory.part("logs")):
            self._launch([part])
        super()._start_parts()
        command = [sys.executable, "-m", "celery", "-A", "girder_worker.app", "worker", "-c", "1"]
        self._launch(
            [
                Part(
                    "celery",
                    # They find other workers, of which there are none.
                    [*command, "--without-gossip", "--without-mingle"],
                    env=self._celery_env,
                    directory=self._directory.part("scratch"),
                    log=self._directory.log("celery"),
                    check=lambda: True,  # messages wait until it listens
                )
            ]
        )
