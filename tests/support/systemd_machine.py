"""A machine with a real systemd, in a container of ``systemd-nspawn``, and this release on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Self

__all__ = ["SystemdMachine", "missing_here"]

_ROOT = Path(__file__).parents[2]
_DEBIAN = "bookworm"
_PACKAGES = (
    "systemd,systemd-sysv,dbus,ca-certificates,python3,python3-venv,gcc,libc6-dev,procps,libcurl4"
)
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_NOT_COPIED = (".*", "build", "*.egg-info", "__pycache__", "benchmarks", "docs", "results")
# nspawn keeps its sockets in /run/systemd, and wants a file system in memory there.
_NSPAWN = (
    "mkdir -p /run/systemd/nspawn && mount -t tmpfs tmpfs /run/systemd/nspawn && "
    'exec systemd-nspawn --quiet --register=no --keep-unit "$@"'
)
_START_S = 60.0


def missing_here() -> str:
    """Return what this machine lacks for another one in it; empty if nothing."""
    if os.getuid() != 0:
        return "root"
    for name in ("debootstrap", "systemd-nspawn", "nsenter", "unshare"):
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            return name
    if " cgroup2 " not in Path("/proc/mounts").read_text():
        return "the unified hierarchy of control groups"
    return ""


class SystemdMachine:
    """A Debian that boots in a container. It has the network of its host.

    Parameters
    ----------
    root
        The directory of its files. An existing one is used again, with this release installed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._log = root.with_name(f"{root.name}.log")

    def __enter__(self) -> Self:
        if not (self._root / "etc/debian_version").exists():
            command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}"]
            subprocess.run([*command, _DEBIAN, str(self._root)], check=True, capture_output=True)
        self._remove_sites()
        self._install()
        self._boot()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._nspawn is not None and self._nspawn.poll() is None:
            self.run("systemctl poweroff", check=False)
            try:
                self._nspawn.wait(60)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait(20)

    def run(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell script on the booted machine, as root."""
        done = subprocess.run(
            [*("nsenter", "-t", str(self._init()), "-m", "-u", "-i", "-p", "-C", "-r", "-w"),
             "/bin/bash", "-c", f"export PATH=/opt/girder_dask/bin:$PATH\n{script}"],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=180,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def _init(self) -> int:
        """Return the process id of its systemd, as seen from here."""
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        return int(children.read_text().split()[0])

    def _remove_sites(self) -> None:
        """Remove what an earlier use has left, which systemd would start."""
        for link in self._root.glob("etc/systemd/system/**/girder-dask-*"):
            link.unlink()
        for name in ("etc/girder_dask", "var/lib/girder_dask", "root/site"):
            shutil.rmtree(self._root / name, ignore_errors=True)

    def _install(self) -> None:
        """Install this release and the tasks of the tests into ``/opt/girder_dask``."""
        source = self._root / "src"
        shutil.rmtree(source, ignore_errors=True)
        ignored = shutil.ignore_patterns(*_NOT_COPIED)
        shutil.copytree(_ROOT, source, ignore=ignored, symlinks=True)
        # What this machine trusts: packages of Python may come through a proxy of its own.
        shutil.copy(_AUTHORITIES, self._root / "etc/ssl/certs/ca-certificates.crt")
        shutil.copy("/etc/resolv.conf", self._root / "etc/resolv.conf")
        (self._root / "etc/hosts").write_text("127.0.0.1 localhost\n")
        (self._root / "etc/pip.conf").write_text(f"[global]\ncert = {_AUTHORITIES}\n")
        script = (
            "set -e\n[ -x /opt/girder_dask/bin/pip ] || python3 -m venv /opt/girder_dask\n"
            "pip=/opt/girder_dask/bin/pip\n"
            "$pip install -q '/src[girder,metrics]'\n"
            "$pip install -q --no-deps --force-reinstall /src /src/tests/packages/my_worker_tasks\n"
        )
        done = subprocess.run(
            [*("unshare", "--mount", "sh", "-c", _NSPAWN, "sh"),
             *("-D", str(self._root), "bash", "-c", script)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def _boot(self) -> None:
        with self._log.open("wb") as log:
            self._nspawn = subprocess.Popen(
                [*("unshare", "--mount", "sh", "-c", _NSPAWN, "sh"),
                 *("--boot", "-D", str(self._root))],
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while not self._is_up():
            assert self._nspawn.poll() is None, self._log.read_text(errors="replace")
            assert time.monotonic() < deadline, self._log.read_text(errors="replace")
            time.sleep(0.5)

    def _is_up(self) -> bool:
        try:
            done = self.run("systemctl is-active multi-user.target", check=False)
        except IndexError:  # there is no process yet
            return False
        return done.returncode == 0
