"""What an operator does during a soak: restarts of workers, new secrets, a new release."""

from __future__ import annotations

import os
import random
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from cryptography import x509

from girder_dask.protocol.wire_version import WIRE_VERSION
from girder_dask.standalone.authority import Authority
from tests.support.fault_site import FaultStack, until

__all__ = ["OLD_RELEASE", "Operation", "Operator", "SoakError", "plan"]

_VERSIONED = Path(__file__).parents[2] / "tests" / "support" / "versioned"
_VERSION = "GIRDER_DASK_TEST_WIRE_VERSION"
#: The environment of parts whose messages have the version of the release before.
OLD_RELEASE = {_VERSION: str(WIRE_VERSION - 1), "PYTHONPATH": str(_VERSIONED)}
_END_S = 60.0
# A process looks for new certificates every minute.
_NOTICE_S = 300.0
_SECONDS_A_DAY = 86400.0


class SoakError(AssertionError):
    """An operation that did not have its effect."""


@dataclass(frozen=True)
class Operation:
    """A planned operation, and when it begins, in seconds since the start."""

    at: float
    name: str
    is_routine: bool = False


def plan(seconds: float, seed: int, workers: int) -> list[Operation]:
    """Return the operations of a soak in the order of their times; the same for the same seed.

    Workers come and go all the time, except the first one, whose memory is watched.
    """
    chance = random.Random(seed)  # noqa: S311 - to be done again
    shares = {
        "certificates that expire soon": 0.15,
        "new credential": 0.3,
        "new certificates": 0.4,
        "upgrade": 0.55,
        "another new credential": 0.75,
        "Girder restarts": 0.85,
    }
    made = [Operation(seconds * share, name) for name, share in shares.items()]
    at = 10.0
    while at < seconds * 0.95:
        how = chance.choice(("leaves", "is killed", "loses its process"))
        made.append(Operation(at, f"worker-{chance.randrange(1, workers)} {how}", is_routine=True))
        at += chance.uniform(15, 45)
    return sorted(made, key=lambda each: each.at)


class Operator:
    """Does operations on a stack with TLS.

    Parameters
    ----------
    stack
        The stack, whose parts have :data:`OLD_RELEASE` in their environments.
    seconds
        The duration of the soak.
    """

    def __init__(self, stack: FaultStack, seconds: float) -> None:
        self._stack = stack
        self._seconds = seconds
        self._authority = Authority(stack.directory / "tls")
        self.workers = sorted(part.name for part in stack.parts if part.is_worker)
        #: What was done: seconds since the start, and a sentence.
        self.diary: list[tuple[float, str]] = []
        #: Those that are no routine.
        self.marks: list[tuple[float, str]] = []
        self._began = time.monotonic()

    def do(self, operation: Operation) -> None:
        """Do an operation, and return when all parts work again."""
        name = operation.name
        self.note(name)
        if not operation.is_routine:
            self.marks.append(self.diary[-1])
        if name == "upgrade":
            self._upgrade()
        elif name == "Girder restarts":
            self._restart("girder")
        elif name.endswith("credential"):
            self._renew_credential()
        elif "certificates" in name:
            self._renew_certificates(is_short="soon" in name)
        else:
            worker, _, how = name.partition(" ")
            self._disturb(worker, how)

    def note(self, text: str) -> None:
        """Add a sentence to the diary, and print it."""
        now = time.monotonic() - self._began
        self.diary.append((round(now, 1), text))
        print(f"{now:7.1f} s  {text}", flush=True)

    def repair(self) -> None:
        """Restart what has ended by itself."""
        ended = [part.name for part in self._stack.parts if not part.running]
        if ended:
            self.note(f"{', '.join(ended)} had ended and are restarted")
            self._stack.restart(*ended)

    # -- workers -------------------------------------------------------------------------------

    def _disturb(self, worker: str, how: str) -> None:
        part = self._stack.part(worker)
        if how == "loses its process":
            pid = self._stack.worker_process(worker).pid
            os.kill(pid, signal.SIGKILL)
            # A nanny whose worker has not joined yet ends with it, and is restarted.
            until(lambda: not part.running or _is_new(self._stack, worker, pid), _END_S)
            return
        if how == "leaves":
            self._end(worker)
        else:
            part.kill()
        time.sleep(min(5.0, self._seconds / 60))
        self._stack.restart(worker)

    def _end(self, name: str) -> None:
        part = self._stack.part(name)
        part.terminate()
        until(lambda: not part.running, _END_S)
        part.kill()

    def _restart(self, *names: str) -> None:
        for name in names:
            self._end(name)
        self._stack.restart(*names)

    # -- releases ------------------------------------------------------------------------------

    def _upgrade(self) -> None:
        """Change the version of one part after the other, while jobs run."""
        self._set_version("girder")
        self._restart("girder")
        self.note("Girder has the new release")
        self._set_version("scheduler")
        self._end("scheduler")
        # Workers end with their scheduler, and a service manager starts them again.
        until(lambda: not any(self._stack.part(name).running for name in self.workers), _END_S)
        self._stack.restart("scheduler", *self.workers)
        self.note("the scheduler has the new release")
        for name in self.workers:
            self._set_version(name)
            self._restart(name)
        self.note("all workers have the new release")

    def _set_version(self, name: str) -> None:
        part = self._stack.part(name)
        part.env = {**part.env, _VERSION: str(WIRE_VERSION)}

    # -- secrets -------------------------------------------------------------------------------

    def _renew_credential(self) -> None:
        """Create another credential as an operator does, and revoke the one in use."""
        stack = self._stack
        before = stack.credential_file.read_text()
        command = ["credential", "--api-url", stack.api, "--login", stack.login]
        options = ["--output", str(stack.credential_file), "--revoke-others"]
        done = subprocess.run(
            [sys.executable, "-m", "girder_dask.cli", *command, *options],
            env={**os.environ, "GIRDER_PASSWORD": stack.password},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode or stack.credential_file.read_text() == before:
            raise SoakError(f"There is no new credential: {done.stdout}{done.stderr}")

    def _renew_certificates(self, *, is_short: bool) -> None:
        """Issue all certificates again, and check that running processes show the new ones.

        With ``is_short`` they expire after the next renewal, and before the end of a long soak.
        """
        days = (0.25 * self._seconds + 180) / _SECONDS_A_DAY if is_short else 397.0
        before = self._served()
        pids = self._pids()
        self._authority.renew(days=days)
        until(lambda: before.items().isdisjoint(self._served().items()), _NOTICE_S, 1)
        if self._pids() != pids:
            raise SoakError(f"New certificates have restarted processes: {pids}, {self._pids()}")
        self.note(f"{', '.join(before)} show the new certificates, in the same processes")

    def _pids(self) -> dict[str, int]:
        found = {name: process.pid for name, process in self._stack.processes().items()}
        nannies = {f"nanny of {name}": self._stack.part(name).pid or 0 for name in self.workers}
        return {**found, **nannies}

    def _served(self) -> dict[str, int]:
        """Return the serial numbers of the certificates that the processes show."""
        found = {"scheduler": _serial(int(self._stack.scheduler.rpartition(":")[2]))}
        for name in self.workers:
            for what, pid in (
                (name, self._stack.worker_process(name).pid),
                (f"the nanny of {name}", self._stack.part(name).pid),
            ):
                for n in map(_serial, _ports(pid)):
                    if n:
                        found[what] = n
        return found


def _ports(pid: int | None) -> Iterator[int]:
    for connection in psutil.Process(pid).net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN:
            yield connection.laddr.port


def _serial(port: int) -> int:
    """Return the serial number of the certificate at a port, 0 if there is none."""
    try:
        text = ssl.get_server_certificate(("127.0.0.1", port), timeout=5)
    except OSError:
        return 0
    return x509.load_pem_x509_certificate(text.encode()).serial_number


def _is_new(stack: FaultStack, worker: str, pid: int) -> bool:
    try:
        found = stack.worker_process(worker)
    except psutil.NoSuchProcess:  # its nanny ends
        return False
    return found.pid != pid and worker in stack.registered_workers()
