"""The stack: its parts in order, started, watched and stopped together."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from girder_dask.errors import GirderDaskError, StackError
from girder_dask.standalone import accounts, checks, ports, processes, programs
from girder_dask.standalone.directory import StackDirectory
from girder_dask.standalone.guard import Guard
from girder_dask.standalone.part import Part
from girder_dask.standalone.report import Reporter

__all__ = ["Stack"]

_POLL = 0.05

_LIBRARIES = (
    "Libraries of the system are missing. On Debian and Ubuntu: apt-get install libcurl4 libssl3"
)
_MONGO_HINTS = {
    "error while loading shared libraries": _LIBRARIES,
    "Address already in use": "Another program took the port meanwhile. Start again.",
    "Unclean shutdown": "The database repairs itself at the next start.",
}
_GIRDER_HINTS = {
    "ServerSelectionTimeoutError": "Girder cannot reach the database.",
    "address already in use": "Choose another port with --girder-port.",
}


class Stack:
    """A database, a broker, Girder, a Dask scheduler and workers, as processes of this machine.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`.

    Parameters
    ----------
    directory
        Where data, logs and secrets are kept. A second start finds them again.
    workers
        How many worker processes.
    threads
        How many jobs each of them runs at once.
    host
        The address on which Girder, the scheduler and the dashboard listen.
    girder_port, scheduler_port, dashboard_port
        Their ports; by default those of the run before if they are free, else any.
    env
        Environment variables for every part, beside those of this process.
    girder_env, worker_env
        Environment variables for Girder alone, and for the workers alone.
    reporter
        Hears of what happens.

    Notes
    -----
    Where ``GIRDER_MONGO_URI`` or ``GIRDER_NOTIFICATION_REDIS_URL`` is set (in ``env`` or
    in the environment), that service is used and no own one is started.

    Examples
    --------
    >>> with Stack("/tmp/stack", workers=1) as stack:     # doctest: +SKIP
    ...     stack.client().get("user/me")["login"]
    'admin'
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        workers: int = 2,
        threads: int = 2,
        *,
        host: str = "127.0.0.1",
        girder_port: int | None = None,
        scheduler_port: int | None = None,
        dashboard_port: int | None = None,
        env: Mapping[str, str] | None = None,
        girder_env: Mapping[str, str] | None = None,
        worker_env: Mapping[str, str] | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self._directory = StackDirectory(directory)
        self.workers = workers
        self.threads = threads
        self.host = host
        self.reporter = reporter or Reporter()
        self.parts: list[Part] = []
        self.mongo = ""
        self.redis = ""
        self.girder = ""
        self.scheduler = ""
        self.dashboard = ""
        self._wanted = {
            "girder": girder_port,
            "scheduler": scheduler_port,
            "dashboard": dashboard_port,
        }
        self._extra_env = dict(env or {})
        self._girder_env = dict(girder_env or {})
        self._worker_env = dict(worker_env or {})
        self._state: dict[str, Any] = {}
        self._ports: dict[str, int] = {}
        self._ended: set[str] = set()
        self._guard: Guard | None = None

    # What runs

    @property
    def directory(self) -> Path:
        """Where data, logs and secrets are kept."""
        return self._directory.path

    @property
    def stack_file(self) -> Path:
        """The JSON file that describes what runs."""
        return self._directory.stack_file

    @property
    def api(self) -> str:
        """Girder's REST API."""
        return f"{self.girder}/api/v1"

    @property
    def api_key(self) -> str:
        """A key with all rights of the administrator."""
        return str(self._state["api_key"])

    @property
    def login(self) -> str:
        """The administrator's name."""
        return str(self._state["login"])

    @property
    def password(self) -> str:
        """The administrator's password."""
        return str(self._state["password"])

    @property
    def credential_file(self) -> Path:
        """The file that holds the scheduler's API key."""
        return self._directory.credential_file

    @property
    def pids(self) -> dict[str, int]:
        """The process ids by the names of the parts."""
        return {p.name: p.pid for p in self.parts if p.pid is not None and p.running}

    def part(self, name: str) -> Part:
        """Return the part with a name, for example ``'worker-0'``."""
        for part in self.parts:
            if part.name == name:
                return part
        names = ", ".join(p.name for p in self.parts) or "nothing"
        raise StackError(f"The stack has no part {name!r}; it has {names}.")

    def client(self) -> Any:
        """Return a ``girder_client.GirderClient`` of the administrator."""
        import girder_client

        client = girder_client.GirderClient(apiUrl=self.api)
        client.authenticate(apiKey=self.api_key)
        return client

    def describe(self) -> dict[str, Any]:
        """Return what ``stack.json`` holds."""
        return {
            "girder": self.girder,
            "api": self.api,
            "api_key": self.api_key,
            "login": self.login,
            "password": self.password,
            "mongo": self.mongo,
            "redis": self.redis,
            "scheduler": self.scheduler,
            "dashboard": f"{self.dashboard}/status",
            "pids": self.pids,
        }

    # Life

    def __enter__(self) -> Stack:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> Stack:
        """Start every part, and return when all of them do their work.

        Raises
        ------
        StackError
            If a part does not start. Its last log lines are in the message, and whatever
            was started is stopped.
        """
        programs.require_girder()
        lock = self._directory.lock()
        try:
            self._directory.stack_file.unlink(missing_ok=True)
            # The guard of a run before may have been killed together with its launcher.
            processes.end(processes.marked(str(self.directory)), grace=5)
            self._guard = Guard(str(self.directory), lock)
            self._state = self._directory.load_state()
            self._choose_ports()
            self._start_parts()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop every part in reverse order, and return when no process is left."""
        workers = [p for p in self.parts if p.name.startswith("worker-")]
        others = [p for p in self.parts if not p.name.startswith("worker-")]
        try:
            self._stop_together(workers)
            for part in reversed(others):
                self._stop_together([part])
        finally:
            # Also when a second Ctrl-C does not want to wait.
            for part in self.parts:
                part.kill()
            processes.end(processes.marked(str(self.directory)), grace=1)
            self._close()

    def poll(self) -> list[str]:
        """Return a message for each part that has ended since the last call."""
        messages = []
        for part in self.parts:
            if not part.running and part.name not in self._ended:
                self._ended.add(part.name)
                messages.append(part.describe_end("has ended"))
                self._write_stack_file()
        return messages

    def _close(self) -> None:
        if self._guard is not None:
            self._guard.close()
            self._guard = None
            if self._directory.stack_file.exists():
                self._write_stack_file()
            self.reporter.stopped()
        self.parts = []
        self._directory.unlock()

    def _write_stack_file(self) -> None:
        self._directory.save_stack(self.describe())

    # Starting

    def _choose_ports(self) -> None:
        before = self._state.get("ports", {})
        for name in ("mongod", "redis", "girder", "scheduler", "dashboard"):
            host = "127.0.0.1" if name in {"mongod", "redis"} else self.host
            wanted = self._wanted.get(name)
            if wanted and not ports.is_free(wanted, host):
                raise StackError(
                    f"Port {wanted} of {host}, wanted for {name}, is in use. Stop the program "
                    f"that listens there, or choose another with --{name}-port."
                )
            taken = self._ports.values()
            self._ports[name] = wanted or ports.choose(before.get(name), host, taken)
        self._state["ports"] = self._ports
        self._directory.save_state(self._state)

    def _start_parts(self) -> None:
        here = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104
        self.girder = f"http://{here}:{self._ports['girder']}"
        self.scheduler = f"tcp://{here}:{self._ports['scheduler']}"
        self.dashboard = f"http://{here}:{self._ports['dashboard']}"
        # Girder waits for its database, so that all three can start at once.
        first = [*self._storage(), self._girder()]
        self._launch(first)
        self._await(first)
        self._prepare_girder()
        last = [self._scheduler(), *self._workers()]
        self._launch(last)
        self._await(last)
        self._write_stack_file()

    def _storage(self) -> list[Part]:
        """Return the parts that keep data, without those that the environment names."""
        env = self._env()
        parts = []
        self.mongo = env.get("GIRDER_MONGO_URI", "")
        if not self.mongo:
            self.mongo = f"mongodb://127.0.0.1:{self._ports['mongod']}/girder"
            parts.append(self._mongod())
        elif not checks.mongo_answers(self.mongo, timeout=5):
            raise StackError(
                "The database that GIRDER_MONGO_URI names does not answer. Start it, or unset "
                "GIRDER_MONGO_URI so that the stack starts its own."
            )
        self.redis = env.get("GIRDER_NOTIFICATION_REDIS_URL", "")
        if not self.redis:
            self.redis = f"redis://127.0.0.1:{self._ports['redis']}"
            parts.append(self._redis())
        elif not checks.redis_answers(self.redis):
            raise StackError(
                "The Redis that GIRDER_NOTIFICATION_REDIS_URL names does not answer. Start it, or "
                "unset GIRDER_NOTIFICATION_REDIS_URL so that the stack starts its own."
            )
        return parts

    def _mongod(self) -> Part:
        return self._part(
            "mongod",
            programs.mongod(self._directory.part("mongo"), self._ports["mongod"]),
            check=lambda: checks.mongo_answers(self.mongo, timeout=0.2),
            grace=20,
            hints=_MONGO_HINTS,
        )

    def _redis(self) -> Part:
        return self._part(
            "redis",
            programs.redis_server(self._directory.part("redis"), self._ports["redis"]),
            check=lambda: checks.redis_answers(self.redis),
        )

    def _girder(self) -> Part:
        env = {
            "GIRDER_MONGO_URI": self.mongo,
            "GIRDER_NOTIFICATION_REDIS_URL": self.redis,
            "GIRDER_SETTING_DASK_SCHEDULER_ADDRESS": self.scheduler,
            "GIRDER_SETTING_DASK_API_URL": self.api,
            **self._girder_env,
        }
        return self._part(
            "girder",
            programs.girder(self.host, self._ports["girder"]),
            env=env,
            check=lambda: checks.girder_answers(self.api),
            hints=_GIRDER_HINTS,
        )

    def _scheduler(self) -> Part:
        env = {
            "DASK_CONFIG": str(self._dask_config()),
            "DASK_GIRDER__API_URL": self.api,
            "DASK_GIRDER__CREDENTIAL_FILE": str(self.credential_file),
        }
        return self._part(
            "scheduler",
            programs.scheduler(self.host, self._ports["scheduler"], self._ports["dashboard"]),
            env=env,
            check=lambda: checks.registered_workers(self.dashboard) is not None,
        )

    def _workers(self) -> list[Part]:
        def registered() -> bool:
            return (checks.registered_workers(self.dashboard) or 0) >= self.workers

        directory = self._directory.part("workers")
        return [
            self._part(
                f"worker-{n}",
                programs.worker(self.scheduler, f"worker-{n}", self.threads, directory),
                env=self._worker_env,
                check=registered,
            )
            for n in range(self.workers)
        ]

    def _part(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None, **kw: Any
    ) -> Part:
        return Part(
            name,
            command,
            env={**self._env(), **(env or {})},
            directory=self._directory.part("scratch"),
            log=self._directory.log(name),
            **kw,
        )

    def _env(self) -> dict[str, str]:
        env = {**os.environ, **self._extra_env}
        env[processes.MARK] = str(self.directory)
        env["PYTHONUNBUFFERED"] = "1"
        # It would come before the database that we name.
        env.pop("GIRDER_TEST_DB", None)
        # The parts have another working directory.
        if env.get("PYTHONPATH"):
            entries = env["PYTHONPATH"].split(os.pathsep)
            env["PYTHONPATH"] = os.pathsep.join(str(Path(e).absolute()) for e in entries)
        return env

    def _dask_config(self) -> Path:
        """Return a directory for DASK_CONFIG: the deployment's file, after the user's own."""
        directory = self._directory.part("dask")
        for old in directory.iterdir():
            old.unlink()
        users = self._env().get("DASK_CONFIG")
        if users:
            given = Path(users)
            files = sorted(given.glob("*.y*ml")) if given.is_dir() else [given]
            for n, file in enumerate(f for f in files if f.is_file()):
                shutil.copy(file, directory / f"{n:03}-{file.stem}.yaml")
        import importlib.util  # TEMPORARY

        if importlib.util.find_spec("girder_dask.scheduler_hooks") is None:
            return directory
        shutil.copy(
            Path(__file__).with_name("girder_dask.yaml"), directory / "999-girder_dask.yaml"
        )
        return directory

    def _launch(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self.reporter.starting(part.name)
            self.parts.append(part)
            part.start(self._guard)

    def _await(self, parts: Sequence[Part]) -> None:
        pending = list(parts)
        while pending:
            for part in list(pending):
                if part.is_ready():
                    pending.remove(part)
                    self.reporter.ready(part.name, time.monotonic() - part.started_at)
            for message in self.poll():
                raise StackError(message)
            if pending:
                time.sleep(_POLL)

    def _prepare_girder(self) -> None:
        try:
            client = accounts.ensure_administrator(self.api, self._state)
            accounts.ensure_api_key(self.api, client, self._state)
            self._directory.save_state(self._state)
            accounts.ensure_assetstore(client, self._directory.part("assetstore"))
            try:  # TEMPORARY
                accounts.ensure_credential(self.api, client, self.credential_file)
            except GirderDaskError as e:
                self.reporter.note(f"TEMPORARY: {e}")
        except StackError:
            raise
        except GirderDaskError as e:
            raise StackError(f"Girder has started, but cannot be prepared. {e}") from e

    # Stopping

    def _stop_together(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if part.running:
                self.reporter.stopping(part.name)
                part.terminate()
        for part in parts:
            deadline = time.monotonic() + part.grace
            while part.running and time.monotonic() < deadline:
                time.sleep(_POLL / 2)
            part.kill()
            if self._guard is not None and part.pid is not None:
                self._guard.forget(part.pid)
