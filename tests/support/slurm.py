"""A real Slurm on this machine: munge, a controller and one node, in a directory of their own.

Only root can start them.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from girder_dask.standalone import ports

__all__ = ["PROGRAMS", "Slurm"]

#: The programs that it needs.
PROGRAMS = ("munged", "sbatch", "slurmctld", "slurmd", "squeue")
_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.sock
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldPort={controller}
SlurmdPort={node}
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
PropagateResourceLimits=NONE
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=8000 State=UNKNOWN
PartitionName=tests Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
_TIMEOUT_S = 30.0


class Slurm:
    """A cluster of one node with eight cores, as Slurm believes.

    Parameters
    ----------
    directory
        The directory of its state and logs. Its path is short, as that of a socket must be.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        #: The environment of those who use it.
        self.env = {"SLURM_CONF": str(directory / "slurm.conf")}

    def __enter__(self) -> Self:
        directory = self.directory
        for name in ("state", "spool"):
            (directory / name).mkdir()
        directory.chmod(0o755)  # munge refuses a socket that others cannot reach
        key = directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        controller = ports.choose(None)
        text = _CONFIGURATION.format(
            directory=directory,
            host=socket.gethostname(),
            controller=controller,
            node=ports.choose(None, taken=[controller]),
        )
        (directory / "slurm.conf").write_text(text)
        try:
            self._start(
                *("munged", "--force", "--foreground", f"--key-file={key}"),
                *(f"--socket={directory}/munge.sock", f"--pid-file={directory}/munge.pid"),
                *(f"--log-file={directory}/munge.log", f"--seed-file={directory}/munge.seed"),
            )
            self._wait((directory / "munge.sock").exists)
            self._start("slurmctld", "-D", "-c")
            self._start("slurmd", "-D", "-N", socket.gethostname())
            self._wait(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def run(self, *command: str) -> str:
        """Run a command of Slurm, and return what it prints; nothing if it fails."""
        env = {**os.environ, **self.env}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
        return done.stdout if done.returncode == 0 else ""

    def jobs(self) -> list[str]:
        """Return the ids of the batch jobs that wait or run."""
        return self.run("squeue", "--noheader", "--format=%i").split()

    def _start(self, *command: str) -> None:
        found = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
        assert found, command[0]
        with (self.directory / f"{command[0]}.out").open("wb") as output:
            self._processes.append(
                subprocess.Popen(
                    [found, *command[1:]],
                    env={**os.environ, **self.env},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            )

    def _wait(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while not ready():
            logs = [path.read_text(errors="replace")[-1500:] for path in self._logs()]
            assert time.monotonic() < deadline, "\n".join(logs)
            time.sleep(0.1)

    def _logs(self) -> list[Path]:
        return [*self.directory.glob("*.log"), *self.directory.glob("*.out")]
