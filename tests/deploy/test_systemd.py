"""The units that ``girder-dask init`` writes, started by a real systemd as their README says."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import my_worker_tasks
import pytest

from girder_dask import connect
from girder_dask.standalone import checks, ports
from girder_dask.transforms import GirderFileId, GirderUploadToFolder
from tests.support.deployed_site import PASSWORD, blocks, register
from tests.support.storage import Storage
from tests.support.systemd_machine import SystemdMachine, missing_here

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

COMPILED = """
import ctypes, pathlib, tempfile
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "a.c").write_text("int twice(int x) { return 2 * x; }")
subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "a.so", folder / "a.c"], check=True)
account = subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()
result = [ctypes.CDLL(folder / "a.so").twice(21), account]
"""
ACCESSIBLE = """
result = []
for mode, path in paths:
    try:
        open(path, mode).read(0) if mode == "r" else open(path, mode).close()
        result.append(path)
    except OSError:
        pass
"""
CLOSED = [
    ("r", "/etc/girder_dask/scheduler/girder.credential"),
    ("r", "/etc/girder_dask/scheduler/scheduler.key"),
    ("r", "/etc/girder_dask/girder/girder.env"),
    ("r", "/etc/girder_dask/girder/girder.key"),
    ("r", "/root/.bashrc"),
    ("a", "/etc/girder_dask/worker/start"),
    ("a", "/opt/girder_dask/added"),
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdMachine]:
    if missing := missing_here():
        pytest.skip(f"A machine with systemd needs {missing}.")
    given = os.environ.get("DEPLOY_DIRECTORY")
    directory = Path(given) if given else tmp_path_factory.mktemp("systemd")
    directory.mkdir(exist_ok=True)
    with SystemdMachine(directory / "systemd") as found:
        yield found


class UnitSite:
    """A site whose processes are units."""

    def __init__(self, machine: SystemdMachine, storage: Storage, directory: Path) -> None:
        self.machine = machine
        girder, scheduler, dashboard = (ports.choose(None) for _ in range(3))
        self.scheduler = f"tls://127.0.0.1:{scheduler}"
        self.api = f"http://127.0.0.1:{girder}/api/v1"
        machine.run(
            "rm -rf /root/site /etc/girder_dask && cd /root && girder-dask init site --hosts "
            f"127.0.0.1,127.0.0.1,127.0.0.1 --tls --girder-port {girder} "
            f"--scheduler-port {scheduler} --dashboard-port {dashboard} && "
            "mkdir /etc/girder_dask && cp -r site/girder site/scheduler site/worker "
            "/etc/girder_dask"
        )
        for name, value in storage.env().items():
            machine.run(f"sed -i 's#^{name}=.*#{name}={value}#' /etc/girder_dask/girder/girder.env")
        (directory / "README.md").write_text(machine.run("cat /root/site/README.md").stdout)
        units, doctor = blocks(directory, "sh")["systemd"]
        assert units == commands("scheduler", "girder.credential")
        machine.run(commands("girder", "girder.env"))
        until(lambda: checks.girder_answers(self.api), 60)
        self.client = register(self.api, Path("/var/lib/girder_dask/girder/assetstore"))
        machine.run(
            f"GIRDER_PASSWORD={PASSWORD!r} girder-dask credential --api-url {self.api} "
            "--login admin --output /etc/girder_dask/scheduler/girder.credential"
        )
        machine.run(units)
        machine.run(commands("worker", unit="girder-dask-worker@", instance="1"))
        machine.run(doctor)
        until(self.is_well, 90)

    def is_well(self) -> bool:
        """Return True if doctor's unit finds all well, with two workers."""
        return self.machine.run("systemctl start girder-dask-doctor", check=False).returncode == 0

    def restarts(self, unit: str) -> int:
        shown = self.machine.run(f"systemctl show --value -p NRestarts {unit}").stdout
        return int(shown)


def commands(role: str, own: str = "", unit: str = "", instance: str = "") -> str:
    """Return the commands of the README for the scheduler, for any role."""
    folder, account = f"/etc/girder_dask/{role}", f"girder-dask-{role}"
    files = [f"{folder}/{own}"] if own else []
    service = f"{unit or account}.service"
    return (
        f"systemd-sysusers {folder}/accounts.conf\n"
        f"chown -R root: {folder}\n"
        f"chown {account}: {' '.join([*files, f'{folder}/*.key'])}\n"
        f"systemctl link {folder}/{service}\n"
        f"systemctl enable --now {service.replace('@', f'@{instance}')}\n"
    )


def until(condition: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this did not come true"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def site(machine: SystemdMachine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnitSite]:
    directory = tmp_path_factory.mktemp("units")
    with Storage(directory / "storage") as storage:
        try:
            yield UnitSite(machine, storage, directory)
        except AssertionError:
            print(machine.run("journalctl -b --no-pager | tail -100", check=False).stdout)
            raise


def test_units_run_compiled_code_subprocesses_and_files(site: UnitSite, tmp_path: Path) -> None:
    folder = site.client.createFolder(
        site.client.get("user/me")["_id"], "units", parentType="user", reuseExisting=True
    )["_id"]
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    file = site.client.uploadFileToFolder(folder, str(tmp_path / "file"))["_id"]
    key = site.client.post("api_key", parameters={"name": "units"})["key"]
    with connect(site.api, api_key=key):
        assert my_worker_tasks.process.delay(COMPILED).get(timeout=120) == [
            42,
            "girder-dask-worker",
        ]
        sizes = [my_worker_tasks.file_size.delay(GirderFileId(file)) for _ in range(4)]
        assert [job.get(timeout=60) for job in sizes] == [100_000] * 4
        hooks = [GirderUploadToFolder(folder)]
        my_worker_tasks.make_files.apply_async([2], girder_result_hooks=hooks).get(timeout=60)
        code = f"paths = {CLOSED!r}\n{ACCESSIBLE}"
        assert my_worker_tasks.process.delay(code).get(timeout=60) == []
        control = f"paths = [('r', '/etc/girder_dask/worker/start')]\n{ACCESSIBLE}"
        assert my_worker_tasks.process.delay(control).get(timeout=60) != []
    names = {item["name"] for item in site.client.listItem(folder)}
    assert {"file-0.txt", "file-1.txt"} < names


def test_units_are_restarted_and_doctor_finds_all_well_again(site: UnitSite) -> None:
    units = ("girder-dask-scheduler", "girder-dask-worker@1")
    before = [site.restarts(unit) for unit in units]
    site.machine.run("systemctl kill --signal=KILL girder-dask-scheduler")
    # Workers end with their scheduler.
    until(lambda: all(site.restarts(u) > n for u, n in zip(units, before, strict=True)), 90)
    until(site.is_well, 90)
    assert site.machine.run("systemctl is-active girder-dask-girder").stdout.strip() == "active"
    timers = site.machine.run("systemctl list-timers --no-pager").stdout
    assert "girder-dask-doctor.timer" in timers


def test_units_are_hardened_as_systemd_sees_them_running(site: UnitSite) -> None:
    for unit in ("girder-dask-girder", "girder-dask-scheduler", "girder-dask-worker@1"):
        shown = site.machine.run(f"systemd-analyze security --no-pager {unit} | tail -1").stdout
        (level,) = re.findall(r"([\d.]+) (?:OK|MEDIUM|EXPOSED|UNSAFE)", shown)
        assert float(level) < 4.0
