"""The stack: its parts in order, started, watched and stopped together."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from girder_dask import credential
from girder_dask.errors import GirderDaskError, StackError
from girder_dask.standalone import accounts, marked_processes, programs
from girder_dask.standalone.info import StackInfo
from girder_dask.standalone.plan import Plan
from girder_dask.standalone.reaper import Reaper
from girder_dask.standalone.report import Reporter
from girder_dask.standalone.stack_part import Part

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Stack"]

_POLL_INTERVAL_S = 0.03


class Stack(StackInfo):
    """A database, a broker, Girder, a Dask scheduler and workers, as processes of this machine.

    Use it as a context manager, or call :meth:`start` and :meth:`stop`.

    Parameters
    ----------
    directory
        Where data, logs and secrets are kept. The next start uses them again.
    workers
        The number of worker processes.
    threads
        The number of jobs that each worker runs at once.
    host
        The address on which Girder, the scheduler and the dashboard listen.
    girder_port, scheduler_port, dashboard_port
        Their ports; by default those of the previous run if they are free, else any.
    tls
        Whether Dask's processes use TLS, with certificates of the stack's own authority in its
        directory. Clients need one of them: see :attr:`tls_files`.
    env
        Environment variables for every part, in addition to those of this process.
    girder_env, worker_env
        Environment variables for Girder alone, and for the workers alone.
    with_dashboard
        Whether the scheduler serves the pages of Dask's dashboard. Without them it starts
        faster.
    reporter
        Reports the start and the end of each part.

    Notes
    -----
    Where ``GIRDER_MONGO_URI`` or ``GIRDER_NOTIFICATION_REDIS_URL`` is set (in ``env`` or
    in the environment), that service is used and none is started. Otherwise a program of the
    system is started, else that of a wheel. Without any Redis the stack works, but Girder's pages
    do not update by themselves.

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
        tls: bool = False,
        env: Mapping[str, str] | None = None,
        girder_env: Mapping[str, str] | None = None,
        worker_env: Mapping[str, str] | None = None,
        with_dashboard: bool = True,
        reporter: Reporter | None = None,
    ) -> None:
        super().__init__(directory)
        self.workers = workers
        self.threads = threads
        self.host = host
        self.tls = tls
        self.reporter = reporter or Reporter()
        self.parts: list[Part] = []
        self._wanted = {
            "girder": girder_port,
            "scheduler": scheduler_port,
            "dashboard": dashboard_port,
        }
        self._env = dict(env or {})
        self._girder_env = dict(girder_env or {})
        self._worker_env = dict(worker_env or {})
        self._with_dashboard = with_dashboard
        self._ended: set[str] = set()
        self._reaper: Reaper | None = None

    # What runs

    @property
    def pids(self) -> dict[str, int]:
        """The process ids by the names of the parts that run."""
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
        return credential.connect(self.api, api_key=self.api_key)

    def describe(self) -> dict[str, Any]:
        """Return the content of ``stack.json``."""
        names = (
            "girder",
            "api",
            "api_key",
            "login",
            "password",
            "mongo",
            "redis",
            "scheduler",
            "dashboard",
            "tls_files",
            "pids",
        )
        return {name: getattr(self, name) for name in names}

    # Life

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> Self:
        """Start all parts, and return when all of them work.

        Raises
        ------
        StackError
            If a part does not start. The message has its last log lines; the other parts are
            stopped.
        """
        programs.require_girder()
        lock = self._directory.lock()
        try:
            self.stack_file.unlink(missing_ok=True)
            # The reaper of an earlier run may have been killed together with its launcher.
            marked_processes.end(marked_processes.marked(str(self.directory)), grace=5)
            self.parts = []
            self._ended = set()
            self._reaper = Reaper(str(self.directory), lock, self._directory.log("reaper"))
            self._state = self._directory.load_state()
            self._start_parts()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop all parts in reverse order, and return when no process is left."""
        workers = [p for p in self.parts if p.is_worker]
        others = [p for p in self.parts if not p.is_worker]
        try:
            self._stop_together(workers)
            for part in reversed(others):
                self._stop_together([part])
        finally:
            # Also after a second Ctrl-C.
            for part in self.parts:
                part.kill()
            marked_processes.end(marked_processes.marked(str(self.directory)), grace=1)
            self._close()

    def poll(self) -> list[str]:
        """Return a message for each part that has ended since the last call."""
        messages = []
        for part in self.parts:
            if not part.running and part.name not in self._ended:
                self._ended.add(part.name)
                messages.append(part.describe_end("has ended"))
        if messages:
            self.save()
        return messages

    # For the supervisor

    def start_again(self, part: Part) -> None:
        """Restart a part that has ended."""
        part.start(self._reaper, again=True)
        self._ended.discard(part.name)

    def clear(self, part: Part) -> None:
        """Kill the processes that a part has left behind."""
        part.kill()
        if self._reaper is not None and part.pid is not None:
            self._reaper.forget(part.pid)

    def save(self) -> None:
        """Update ``stack.json``, if it exists, with the processes that run now."""
        if self.stack_file.exists():
            self._directory.save_stack(self.describe())

    # Starting

    def _start_parts(self) -> None:
        plan = self._planned = Plan(
            self._directory,
            env=self._env,
            girder_env=self._girder_env,
            worker_env=self._worker_env,
            host=self.host,
            wanted=self._wanted,
            before=self._state.get("ports", {}),
            with_dashboard=self._with_dashboard,
            tls=self.tls,
        )
        self._state["ports"] = plan.ports
        self._directory.save_state(self._state)
        # Girder waits for its database, so all three can start at once.
        parts = [*plan.storage_parts(), plan.girder_part()]
        for note in plan.notes:
            self._tell(self.reporter.note, note)
        self._launch(parts)
        self._prepare_girder()
        self._launch([plan.scheduler_part(), *plan.worker_parts(self.workers, self.threads)])
        self._directory.save_stack(self.describe())

    def _launch(self, parts: Sequence[Part]) -> None:
        """Start parts together, and wait until all of them work."""
        for part in parts:
            self._tell(self.reporter.starting, part.name)
            self.parts.append(part)
            part.start(self._reaper)
        pending = list(parts)
        while pending:
            for part in list(pending):
                if part.is_ready():
                    pending.remove(part)
                    self._tell(self.reporter.ready, part.name, time.monotonic() - part.started_at)
            for message in self.poll():
                raise StackError(message)
            if pending:
                time.sleep(_POLL_INTERVAL_S)

    def _prepare_girder(self) -> None:
        try:
            client = accounts.ensure_administrator(self.api, self._state)
            accounts.ensure_api_key(self.api, client, self._state)
            self._directory.save_state(self._state)
            accounts.ensure_assetstore(client, self._directory.part("assetstore"))
            accounts.ensure_credential(self.api, client, self.credential_file)
        except StackError:
            raise
        except GirderDaskError as e:
            raise StackError(f"Girder has started but cannot be set up. {e}") from e

    # Stopping

    def _stop_together(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if part.running:
                self._tell(self.reporter.stopping, part.name)
                part.terminate()
        for part in parts:
            deadline = time.monotonic() + part.grace
            while part.running and time.monotonic() < deadline:
                time.sleep(_POLL_INTERVAL_S)
            self.clear(part)

    def _close(self) -> None:
        if self._reaper is not None:
            self._reaper.close()
            self._reaper = None
            self.save()
            self._tell(self.reporter.stopped)
        self._directory.unlock()

    @staticmethod
    def _tell(report: Callable[..., None], *args: Any) -> None:
        # A closed terminal must not prevent an orderly stop.
        with contextlib.suppress(OSError):
            report(*args)
