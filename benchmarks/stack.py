"""The processes of a measurement: girder_dask, girder_worker and Dask alone.

One launcher starts and stops them all, so that none is left behind however a run ends. Those of
girder_worker and Dask start when a case first needs them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from benchmarks import packages
from benchmarks.own_site import OwnSite
from benchmarks.raw import RawDask
from benchmarks.side import Side
from girder_dask.errors import StackError
from girder_dask.standalone import accounts, checks, marked_processes, ports, programs
from girder_dask.standalone.stack import Stack
from girder_dask.standalone.stack_part import Part
from tests.support import rabbitmq
from tests.support.rabbitmq import Rabbit

__all__ = ["BenchmarkStack"]

ROOT = Path(__file__).parents[1]
_POLL = 0.05
_HOST = "127.0.0.1"
#: The threads of each worker in ``girder-dask standalone``.
_DEFAULT_THREADS = 2
#: Seconds until a system that was suspended has caught up.
_SETTLE_S = 1.0
#: Dask settings with which a scheduler keeps workers that were suspended.
_PATIENT = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "1 hour"}
#: Both systems run two jobs at once, in two processes.
_WORKERS = 2
#: The most simulated workers of one process, and the seconds until all must be registered.
_WORKERS_PER_SIMULATION = 250
_REGISTRATION_TIMEOUT_S = 300.0
#: Systems with a Girder and a cluster of their own.
_OWN_SITES = ("takeover", "beside_worker")
#: A broker that Girder does not connect to before it sends a task there.
_NO_BROKER = "amqp://guest@127.0.0.1:9//"


class BenchmarkStack(Stack):
    """The stack of girder_dask and the systems to which it is compared.

    Parameters
    ----------
    directory
        The directory of data and logs.
    threads
        The number of jobs that each of girder_dask's workers runs at once.
    """

    def __init__(self, directory: Path, threads: int = 1) -> None:
        temporary = directory / "tmp"
        temporary.mkdir(parents=True)
        super().__init__(
            directory,
            workers=_WORKERS,
            threads=threads,
            env={
                "PYTHONPATH": _path(packages.write(directory / "girder_dask", ported=False)),
                "TMPDIR": str(temporary),
                **_PATIENT,
            },
            girder_env={"BENCHMARK_PLUGIN": "dask"},
        )
        self._sides: dict[str, Side] = {}
        self._raw: RawDask | None = None
        self._suspended: list[psutil.Process] = []
        self._turn: str | None = None
        self._simulations = itertools.count(1)
        #: The name of girder_worker's broker, once it is started.
        self.broker: str | None = None

    @property
    def girder_dask(self) -> Side:
        """Girder with girder_dask."""
        if "girder_dask" not in self._sides:
            workers = self._own_workers()
            side = Side("girder_dask", self, self.client(), self.mongo, ["girder"], workers)
            self._sides["girder_dask"] = side
            side.warm_up()
        return self._sides["girder_dask"]

    @property
    def girder_worker(self) -> Side:
        """Girder with girder_worker in its default configuration."""
        if "girder_worker" not in self._sides:
            self._sides["girder_worker"] = self._start_girder_worker()
        return self._sides["girder_worker"]

    @property
    def takeover(self) -> Side:
        """Girder with the tasks of girder_worker on girder_dask."""
        if "takeover" not in self._sides:
            package = self._ported_package()
            self._sides["takeover"] = self._start_own_site("takeover", package, "dask://")
        return self._sides["takeover"]

    @property
    def beside_worker(self) -> Side:
        """Girder with girder_dask, and girder_worker's plugin for a broker of its own."""
        if "beside_worker" not in self._sides:
            package = packages.write(self.directory / "girder_dask", ported=False)
            side = self._start_own_site("beside_worker", package, _NO_BROKER)
            self._sides["beside_worker"] = side
        return self._sides["beside_worker"]

    @property
    def dask(self) -> RawDask:
        """Dask without Girder, with the same number of workers and threads."""
        if self._raw is None:
            self._raw = self._start_dask()
        return self._raw

    def stop(self) -> None:
        """Stop everything."""
        self._resume_all()
        if self._raw is not None:
            self._raw.close()
        for side in self._sides.values():
            side.close()
        super().stop()

    def turn(self, system: str) -> None:
        """Resume one system, and suspend the Dask processes of the others.

        An idle scheduler or worker takes some percent of a core. The processes of girder_worker
        take almost nothing, and its broker drops idle connections, so they are not suspended.
        """
        if system == self._turn:
            return
        self._resume_all()
        self._turn = system
        for other, names in self._dask_parts().items():
            for name in names if other != system else ():
                process = psutil.Process(self.part(name).pid)
                for each in (process, *process.children(recursive=True)):
                    each.suspend()
                    self._suspended.append(each)
        time.sleep(_SETTLE_S)

    def check(self) -> None:
        """Raise StackError if a part has ended."""
        for message in self.poll():
            raise StackError(message)

    def stop_parts(self, names: Sequence[str]) -> None:
        """Stop parts, which are not restarted before :meth:`start_parts`."""
        self._ended |= set(names)
        self._stop_together([self.part(name) for name in names])

    def start_parts(self, names: Sequence[str]) -> None:
        """Restart stopped parts, and return when they work."""
        parts = [self.part(name) for name in names]
        for part in parts:
            self.start_again(part)
        _wait(parts)

    @contextlib.contextmanager
    def default_threads(self) -> Iterator[None]:
        """Run girder_dask's workers with the threads of ``girder-dask standalone`` in a block."""
        self._set_threads(_DEFAULT_THREADS)
        try:
            yield
        finally:
            self._set_threads(self.threads)

    @contextlib.contextmanager
    def simulated_workers(self, count: int) -> Iterator[None]:
        """Replace girder_dask's workers by so many simulated ones in a block."""
        self.stop_parts(self._own_workers())
        scheduler = self.describe()["scheduler"]
        command = [sys.executable, "-m", "benchmarks.simulated_workers", scheduler]
        names = []
        for first in range(0, count, _WORKERS_PER_SIMULATION):
            name = f"simulated-{next(self._simulations)}"
            some = min(_WORKERS_PER_SIMULATION, count - first)
            options = ["--workers", str(some), "--first", str(first)]
            self._launch([self._peer(name, [*command, *options], self._environment())])
            names.append(name)
        try:
            self._await_workers(count)
            yield
        finally:
            self.stop_parts(names)
            self.start_parts(self._own_workers())

    def _await_workers(self, count: int) -> None:
        """Wait until the scheduler has so many workers."""
        from distributed import Client

        with Client(self.describe()["scheduler"], set_as_default=False) as client:
            client.wait_for_workers(count, timeout=_REGISTRATION_TIMEOUT_S)

    def _own_workers(self) -> list[str]:
        return [f"worker-{n}" for n in range(_WORKERS)]

    def _set_threads(self, threads: int) -> None:
        names = self._own_workers()
        self.stop_parts(names)
        for name in names:
            command = self.part(name).command
            command[command.index("--nthreads") + 1] = str(threads)
        self.start_parts(names)

    def _dask_parts(self) -> dict[str, list[str]]:
        """Return the names of the running Dask processes of each system."""
        names = [part.name for part in self.parts if part.running]
        alone = [name for name in names if name.startswith(("dask-", "worker-dask-"))]
        ours = [name for name in names if name.startswith(("scheduler", "worker-"))]
        own = {
            site: [n for n in names if n.startswith(f"{site}-") and not n.endswith("-girder")]
            for site in _OWN_SITES
        }
        return {"dask": alone, "girder_dask": [n for n in ours if n not in alone], **own}

    def _resume_all(self) -> None:
        for process in self._suspended:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self._suspended.clear()
        self._turn = None

    # Starting

    def _launch(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if part.name == "girder":
                part.command = _serve("dask", self._plan.ports["girder"])
        super()._launch(parts)

    def _start_girder_worker(self) -> Side:
        directory = self._directory.part("girder_worker")
        env = self._environment(self._ported_package())
        broker, backend = self._start_broker(env)
        port = ports.choose(None)
        api = f"http://{_HOST}:{port}/api/v1"
        mongo = self._database("girder_worker")
        env |= {
            "BENCHMARK_PLUGIN": "worker",
            "GIRDER_MONGO_URI": mongo,
            "GIRDER_NOTIFICATION_REDIS_URL": self.redis,
            "GIRDER_SETTING_WORKER_API_URL": api,
            "GIRDER_WORKER_BROKER": broker,
            "GIRDER_WORKER_BACKEND": backend,
            "C_FORCE_ROOT": "1",
        }
        celery = [sys.executable, "-m", "celery", "-A", "girder_worker.app", "worker"]
        celery += ["-c", str(_WORKERS), "--include", packages.NAME]
        self._launch(
            [
                self._peer("girder_worker-girder", _serve("worker", port), env, api),
                self._peer("celery", celery, env),
            ]
        )
        state: dict[str, str] = {}
        client = accounts.ensure_administrator(api, state)
        accounts.ensure_assetstore(client, directory / "assetstore")
        side = Side("girder_worker", self, client, mongo, ["girder_worker-girder"], ["celery"])
        side.warm_up()  # This also waits until Celery listens.
        return side

    def _start_own_site(self, name: str, package: Path, broker: str) -> Side:
        mongo = self._database(name)
        env = {
            **self._environment(package),
            **_PATIENT,
            "GIRDER_MONGO_URI": mongo,
            "GIRDER_NOTIFICATION_REDIS_URL": self.redis,
        }
        site = OwnSite(name, self.directory / name, env, str(self.directory), broker)
        girder = site.girder(_serve("dask,worker", site.port))
        self._launch([girder])
        client = site.prepare()
        cluster = site.cluster(_WORKERS)
        self._launch(cluster)
        side = Side(name, self, client, mongo, [girder.name], [part.name for part in cluster[1:]])
        side.warm_up()
        return side

    def _ported_package(self) -> Path:
        """Return a directory for PYTHONPATH with the tasks as those of girder_worker."""
        return packages.write(self._directory.part("girder_worker") / "package", ported=True)

    def _database(self, name: str) -> str:
        """Return the URI of a database of another Girder."""
        return urllib.parse.urlsplit(self.mongo)._replace(path=f"/{name}").geturl()

    def _start_broker(self, env: dict[str, str]) -> tuple[str, str]:
        """Start girder_worker's broker, and return Celery's broker and result backend URLs."""
        if rabbitmq.program() is None:
            self.broker = "Redis"
            address = f"{self.redis.rstrip('/')}/7"
            return address, address
        self.broker = "RabbitMQ"
        rabbit = Rabbit(self._directory.part("rabbitmq"), env)
        for part in rabbit.parts(self._directory.part("logs")):
            self._launch([part])
        return rabbit.broker, rabbit.backend

    def _start_dask(self) -> RawDask:
        port = ports.choose(None)
        dashboard = ports.choose(None, taken=[port])
        address = f"tcp://{_HOST}:{port}"
        env = {**self._environment(), **_PATIENT}
        directory = self._directory.part("dask-workers")

        def registered() -> bool:
            url = f"http://{_HOST}:{dashboard}"
            return (checks.registered_workers(url) or 0) >= _WORKERS

        commands = {"dask-scheduler": programs.scheduler(_HOST, port, dashboard)}
        for n in range(_WORKERS):
            name = f"worker-dask-{n}"
            commands[name] = programs.worker(address, name, self.threads, directory)
        self._launch([self._peer(name, command, env) for name, command in commands.items()])
        while not registered():
            time.sleep(_POLL)
        scheduler, *workers = commands
        return RawDask(address, {"the scheduler": [scheduler], "the workers": workers})

    def _environment(self, *packages: Path) -> dict[str, str]:
        """Return the environment of a process of a compared system."""
        return {
            **os.environ,
            marked_processes.MARK: str(self.directory),
            "PYTHONPATH": _path(*packages),
            "TMPDIR": str(self.directory / "tmp"),
        }

    def _peer(self, name: str, command: list[str], env: dict[str, str], api: str = "") -> Part:
        return Part(
            name,
            command,
            env=env,
            directory=self._directory.part("scratch"),
            log=self._directory.log(name),
            check=lambda: not api or checks.get_json(f"{api}/system/version") is not None,
        )


def _path(*directories: Path) -> str:
    before = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return os.pathsep.join([*map(str, directories), str(ROOT), *before])


def _serve(plugin: str, port: int) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.serve", f"jobs,{plugin},benchmark"]
    return [*command, "--mode", "production", "-H", _HOST, "-p", str(port)]


def _wait(parts: Sequence[Part]) -> None:
    while not all(part.is_ready() for part in parts):
        time.sleep(_POLL)
