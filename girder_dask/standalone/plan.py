"""The plan of a stack: its parts, their ports and their configuration."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from girder_dask.errors import StackError
from girder_dask.standalone import checks, marked_processes, ports, programs
from girder_dask.standalone.authority import ROLES, Authority, tls_environment
from girder_dask.standalone.directory import StackDirectory
from girder_dask.standalone.stack_part import Part

__all__ = ["NO_REDIS_NOTE", "Plan"]

#: The note to users if no Redis can be started.
NO_REDIS_NOTE = (
    "No Redis was found, so Girder's pages do not update by themselves: reload them. Install one "
    "(apt-get install redis-server, or valkey-server) and start again, or set "
    "GIRDER_NOTIFICATION_REDIS_URL to the URL of a running one."
)

_LOOPBACK = "127.0.0.1"
_ALL_INTERFACES = {"0.0.0.0", "::"}  # noqa: S104 - compared with, not listened on

_MONGO_HINTS = {
    "error while loading shared libraries": (
        "System libraries are missing. On Debian and Ubuntu: apt-get install libcurl4 libssl3"
    ),
    "Address already in use": "Another program has taken the port since. Start again.",
}
_GIRDER_HINTS = {
    "ServerSelectionTimeoutError": "Girder cannot reach the database.",
    "address already in use": "Choose another port with --girder-port.",
    "girder_dask.plugin": "Install the server side: pip install 'girder_dask[girder]'.",
}
_SCHEDULER_HINTS = {
    "girder.security.allow-insecure": (
        "Start with --tls, or set DASK_GIRDER__SECURITY__ALLOW_INSECURE=true if the network is "
        "closed."
    ),
}


class Plan:
    """The parts of one stack, with their ports and their environment.

    Parameters
    ----------
    directory
        The directory of the stack.
    env
        Environment variables for every part, in addition to those of this process.
    girder_env, worker_env
        Environment variables for Girder alone, and for the workers alone.
    host
        The address on which Girder, the scheduler and the dashboard listen.
    wanted
        The ports that the caller asks for: ``girder``, ``scheduler``, ``dashboard``.
    before
        The ports of the previous run, used again if they are free.
    with_dashboard
        Whether the scheduler serves the pages of Dask's dashboard.
    tls
        Whether Dask's processes use TLS, with certificates of the stack's own authority.

    Raises
    ------
    StackError
        If a wanted port is in use.
    GirderDaskError
        If a certificate cannot be issued.
    """

    def __init__(
        self,
        directory: StackDirectory,
        *,
        env: Mapping[str, str],
        girder_env: Mapping[str, str],
        worker_env: Mapping[str, str],
        host: str,
        wanted: Mapping[str, int | None],
        before: Mapping[str, int],
        with_dashboard: bool = True,
        tls: bool = False,
    ) -> None:
        self._directory = directory
        self._env = _environment(env, directory.path)
        self._girder_env = dict(girder_env)
        self._worker_env = dict(worker_env)
        self._host = host
        self._with_dashboard = with_dashboard
        self.ports = _choose_ports(host, wanted, before)
        here = _LOOPBACK if host in _ALL_INTERFACES else host
        mongo = f"mongodb://{_LOOPBACK}:{self.ports['mongod']}/girder"
        redis = f"redis://{_LOOPBACK}:{self.ports['redis']}"
        #: Notes for the user about this stack.
        self.notes: list[str] = []
        self.mongo = self._env.get("GIRDER_MONGO_URI") or mongo
        self.redis = self._env.get("GIRDER_NOTIFICATION_REDIS_URL") or redis
        self.girder = f"http://{here}:{self.ports['girder']}"
        self.api = f"{self.girder}/api/v1"
        #: The authority of the certificates of Dask's processes, or None without TLS.
        self.authority = Authority(directory.path / "tls") if tls else None
        #: The certificates by role; empty without TLS.
        self.certificates = _ensure_certificates(self.authority, here)
        self._protocol = "tls" if tls else "tcp"
        self.scheduler = f"{self._protocol}://{here}:{self.ports['scheduler']}"
        self.dashboard = f"http://{here}:{self.ports['dashboard']}"

    def storage_parts(self) -> list[Part]:
        """Return the database and the broker, except those that the environment names.

        Without an installed Redis there is no broker, and ``notes`` explains the consequence.

        Raises
        ------
        StackError
            If a service that the environment names does not answer.
        """
        parts = []
        if not self._env.get("GIRDER_MONGO_URI"):
            parts.append(self._mongod())
        elif not checks.mongo_answers(self.mongo, timeout=5):
            raise StackError(_no_answer("database", "GIRDER_MONGO_URI"))
        if not self._env.get("GIRDER_NOTIFICATION_REDIS_URL"):
            parts += self._redis()
        elif not checks.redis_answers(self.redis):
            raise StackError(_no_answer("Redis", "GIRDER_NOTIFICATION_REDIS_URL"))
        return parts

    def girder_part(self) -> Part:
        """Return Girder."""
        env = {
            "GIRDER_MONGO_URI": self.mongo,
            "GIRDER_NOTIFICATION_REDIS_URL": self.redis,
            "GIRDER_SETTING_DASK_SCHEDULER_ADDRESS": self.scheduler,
            "GIRDER_SETTING_DASK_API_URL": self.api,
            **self._tls("girder"),
            **self._girder_env,
        }
        return self._part(
            "girder",
            programs.girder(self._host, self.ports["girder"]),
            env=env,
            check=lambda: checks.girder_answers(self.api),
            hints=_GIRDER_HINTS,
        )

    def scheduler_part(self) -> Part:
        """Return the scheduler, configured as in a deployment."""
        env = {
            "DASK_CONFIG": str(self._dask_config()),
            "DASK_GIRDER__API_URL": self.api,
            "DASK_GIRDER__CREDENTIAL_FILE": str(self._directory.credential_file),
            **self._tls("scheduler"),
        }
        return self._part(
            "scheduler",
            programs.scheduler(
                self._host,
                self.ports["scheduler"],
                self.ports["dashboard"],
                with_dashboard=self._with_dashboard,
                protocol=self._protocol,
            ),
            env=env,
            check=lambda: checks.registered_workers(self.dashboard) is not None,
            hints=_SCHEDULER_HINTS,
        )

    def worker_parts(self, count: int, threads: int) -> list[Part]:
        """Return the workers, one process each."""
        parts: list[Part] = []

        def registered() -> bool:
            # A worker does not wait for another that has ended.
            running = sum(part.running for part in parts)
            return (checks.registered_workers(self.dashboard) or 0) >= running

        directory = self._directory.part("workers")
        # By default all stacks of this user would share one directory.
        cache = {"DASK_GIRDER__WORKER__CACHE_DIRECTORY": str(self._directory.path / "cache")}
        cache = {k: self._env.get(k, v) for k, v in cache.items()}
        tls = self._tls("worker")
        parts += [
            self._part(
                f"worker-{n}",
                programs.worker(self.scheduler, f"worker-{n}", threads, directory),
                env={**cache, **tls, **self._worker_env},
                check=registered,
            )
            for n in range(count)
        ]
        return parts

    def _tls(self, role: str) -> dict[str, str]:
        """Return Dask's settings for TLS in the environment of a part; none without TLS."""
        if self.authority is None:
            return {}
        return tls_environment(self.authority.certificate, self.certificates[role])

    def _mongod(self) -> Part:
        return self._part(
            "mongod",
            programs.mongod(self._directory.part("mongo"), self.ports["mongod"]),
            check=lambda: checks.mongo_answers(self.mongo, timeout=0.2),
            grace=20,
            hints=_MONGO_HINTS,
        )

    def _redis(self) -> list[Part]:
        command = programs.redis_server(self._directory.part("redis"), self.ports["redis"])
        if command is None:
            self.notes.append(NO_REDIS_NOTE)
            return []
        return [self._part("redis", command, check=lambda: checks.redis_answers(self.redis))]

    def _part(
        self, name: str, command: Sequence[str], *, env: Mapping[str, str] | None = None, **kw: Any
    ) -> Part:
        return Part(
            name,
            command,
            env={**self._env, **(env or {})},
            directory=self._directory.part("scratch"),
            log=self._directory.log(name),
            **kw,
        )

    def _dask_config(self) -> Path:
        """Return a directory for DASK_CONFIG: the user's files, then that of the deployment."""
        directory = self._directory.part("dask")
        for old in directory.iterdir():
            old.unlink()
        users = self._env.get("DASK_CONFIG")
        if users:
            given = Path(users)
            files = sorted(given.glob("*.y*ml")) if given.is_dir() else [given]
            for n, file in enumerate(f for f in files if f.is_file()):
                shutil.copy(file, directory / f"{n:03}-{file.stem}.yaml")
        ours = Path(__file__).with_name("girder_dask.yaml")
        shutil.copy(ours, directory / "999-girder_dask.yaml")
        for copied in directory.iterdir():
            copied.chmod(0o600)
        return directory


def _ensure_certificates(authority: Authority | None, host: str) -> dict[str, Path]:
    if authority is None:
        return {}
    hosts = list(dict.fromkeys([host, _LOOPBACK, "localhost"]))
    return {
        role: authority.ensure(role, hosts if may_listen else ())
        for role, may_listen in ROLES.items()
    }


def _environment(extra: Mapping[str, str], directory: Path) -> dict[str, str]:
    env = {**os.environ, **extra}
    env[marked_processes.MARK] = str(directory)
    env["PYTHONUNBUFFERED"] = "1"
    # Otherwise each thread of Girder keeps the memory that many jobs at once needed.
    env.setdefault("MALLOC_ARENA_MAX", "2")
    # It would take precedence over the database of this stack.
    env.pop("GIRDER_TEST_DB", None)
    # The parts have another working directory.
    if env.get("PYTHONPATH"):
        entries = env["PYTHONPATH"].split(os.pathsep)
        env["PYTHONPATH"] = os.pathsep.join(str(Path(e).absolute()) for e in entries)
    if env.get("DASK_CONFIG"):
        env["DASK_CONFIG"] = str(Path(env["DASK_CONFIG"]).absolute())
    return env


def _choose_ports(
    host: str, wanted: Mapping[str, int | None], before: Mapping[str, int]
) -> dict[str, int]:
    chosen: dict[str, int] = {}
    for name in ("mongod", "redis", "girder", "scheduler", "dashboard"):
        address = _LOOPBACK if name in {"mongod", "redis"} else host
        port = wanted.get(name)
        if port and not ports.is_free(port, address):
            raise StackError(
                f"Port {port} of {address}, wanted for {name}, is in use. Stop the program that "
                f"listens there, or choose another port with --{name}-port."
            )
        chosen[name] = port or ports.choose(before.get(name), address, chosen.values())
    return chosen


def _no_answer(service: str, variable: str) -> str:
    return (
        f"The {service} that {variable} names does not answer. Start it, or unset {variable} to "
        "have the stack start its own."
    )
