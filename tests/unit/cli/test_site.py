"""The files that ``girder-dask init`` writes."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import dask.config
import pytest
import yaml
from click.testing import CliRunner, Result
from distributed.security import Security

from girder_dask.cli import main
from girder_dask.cli.site.files import Site
from girder_dask.errors import GirderDaskError
from tests.support.dask_keys import check
from tests.support.deploy_files import DEPLOY, EXAMPLE, written_by_init

HOSTS = "girder.example.org,dask.example.org,node1.example.org"
TWO_WORKERS = f"{HOSTS},node2.example.org"
VARIANTS = {
    "here": [],
    "here with TLS": ["--tls"],
    "hosts": ["--hosts", HOSTS],
    "hosts without TLS": ["--hosts", HOSTS, "--no-tls"],
    "two workers": ["--hosts", TWO_WORKERS, "--girder-url", "https://data.example.org/girder"],
}


def init(directory: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["init", str(directory), *options])


@pytest.fixture(scope="module", params=VARIANTS)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a site that stays where it was written."""
    directory = tmp_path_factory.mktemp("site")
    done = init(directory, "--prefix", str(directory), *VARIANTS[request.param])
    assert done.exit_code == 0, done.output
    if request.param == "two workers":
        (directory / "worker-node2.example.org").rename(directory / "worker")
    return directory


def folders(site: Path) -> list[Path]:
    return [site / role for role in ("girder", "scheduler", "worker", "client")]


def config(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "dask.yaml").read_text()) or {}


def content(directory: Path) -> dict[Path, tuple[bytes, int]]:
    return {
        path: (path.read_bytes(), path.stat().st_mode)
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_site_configuration_has_each_key_once_and_only_keys_that_something_reads(
    site: Path,
) -> None:
    for folder in folders(site):
        text = (folder / "dask.yaml").read_text()
        top = re.findall(r"^(\S+):", text, re.MULTILINE)
        assert len(top) == len(set(top)), folder
        found = config(folder)
        found.pop("scheduler-address", None)  # Dask reads it, without a default
        check(yaml.safe_dump(found))


def test_site_configuration_is_read_by_dask(site: Path) -> None:
    """Each role has what it listens with and connects with, from these files alone."""
    with_tls = (site / "authority").exists()
    roles = {
        "girder": ["client"],
        "scheduler": ["scheduler", "client"],
        "worker": ["worker", "client"],
        "client": ["client"],
    }
    for folder in folders(site):
        found = dask.config.collect(paths=[str(folder / "dask.yaml")], env={})
        with dask.config.set(dask.config.merge(dask.config.config, found)):
            security = Security()
            assert (security.require_encryption is True) is with_tls
            for role in roles[folder.name]:
                context = security.get_connection_args(role)["ssl_context"]
                assert (context is not None) is with_tls


def test_site_addresses_agree(site: Path) -> None:
    def setting(role: str, name: str) -> str:
        text = (site / role / f"{role}.env").read_text()
        (value,) = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
        return value

    address = setting("worker", "SCHEDULER")
    assert address == setting("girder", "GIRDER_SETTING_DASK_SCHEDULER_ADDRESS")
    assert address == config(site / "client")["scheduler-address"]
    assert address.startswith(f"{setting('scheduler', 'SCHEDULER_PROTOCOL')}://")
    assert address.endswith(f":{setting('scheduler', 'SCHEDULER_PORT')}")
    api = config(site / "scheduler")["girder"]["api-url"]
    assert api == setting("girder", "GIRDER_SETTING_DASK_API_URL")
    assert api.endswith("/api/v1")
    is_open = setting("scheduler", "SCHEDULER_HOST") != "127.0.0.1"
    insecure = config(site / "scheduler")["girder"].get("security", {}).get("allow-insecure", False)
    assert insecure is (is_open and address.startswith("tcp://"))
    assert (setting("worker", "WORKER_HOST") == "") is is_open


def test_site_gives_workers_no_secret_of_girder(site: Path) -> None:
    secrets = {"girder.env", "girder.key", "scheduler.key", "girder.credential", "ca.key"}
    for folder in folders(site):
        if folder.name in {"worker", "client"}:
            texts = "".join(path.read_text() for path in folder.iterdir())
            assert not secrets & {path.name for path in folder.iterdir()}
            assert not re.search("mongo|redis|credential", texts, re.IGNORECASE)
        assert not (folder / "ca.key").exists()
    for path in site.rglob("*"):
        if path.suffix == ".key" or path.name == "girder.env":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_site_binds_the_http_servers_of_workers_to_the_host(site: Path) -> None:
    command = (site / "worker" / "start").read_text()
    assert re.findall(r"--dashboard-address (\S+)", command) == ["127.0.0.1:0"]
    scheduler = (site / "scheduler" / "scheduler.env").read_text()
    assert "DASHBOARD_ADDRESS=127.0.0.1:" in scheduler


def test_site_commands_are_scripts_that_name_what_they_lack(site: Path) -> None:
    for folder in folders(site)[:3]:
        start = folder / "start"
        assert stat.S_IMODE(start.stat().st_mode) == 0o755
        subprocess.run(["sh", "-n", start], check=True)
        alone = folder.parent / "alone" / folder.name
        alone.mkdir(parents=True)
        shutil.copy(start, alone)
        done = subprocess.run([alone / "start"], capture_output=True, text=True)
        shutil.rmtree(alone.parent)
        assert done.returncode == os.EX_CONFIG
        assert f"cannot read {alone}/{folder.name}.env." in done.stderr


def test_site_settings_may_have_any_characters(site: Path, tmp_path: Path) -> None:
    value = "mongodb://u:p$w0rd'\"`id`@h/girder?authSource=admin&replicaSet=rs0 # no comment"
    folder = tmp_path / "girder"
    shutil.copytree(site / "girder", folder)
    with (folder / "girder.env").open("a") as settings:
        settings.write(f"GIRDER_MONGO_URI={value}")  # the last line may have no end
    shown = subprocess.run(
        [folder / "start", "printenv", "GIRDER_MONGO_URI"], capture_output=True, text=True
    )
    assert (shown.stdout, shown.stderr) == (f"{value}\n", "")


def test_site_without_an_address_of_the_database_does_not_start(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "girder"
    shutil.copytree(site / "girder", folder)
    with (folder / "girder.env").open("a") as settings:
        settings.write("GIRDER_MONGO_URI=\n")
    done = subprocess.run([folder / "start", "true"], capture_output=True, text=True)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == f"{folder}/girder.env has no GIRDER_MONGO_URI.\n"


def test_site_commands_run_others_with_their_settings(site: Path) -> None:
    for role in ("girder", "scheduler"):
        shown = subprocess.run(
            [site / role / "start", "printenv", "DASK_CONFIG"], capture_output=True, text=True
        )
        assert (shown.stdout, shown.stderr) == (f"{site}/{role}/dask.yaml\n", "")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://data.example.org/girder/", ("/girder", "https://data.example.org/girder")),
        ("https://data.example.org/a/b", ("/a/b", "https://data.example.org/a/b")),
        ("https://data.example.org/", ()),
        ("https://data.example.org", ()),
    ],
)
def test_site_below_a_prefix_says_so_to_girder(url: str, expected: tuple[str, ...]) -> None:
    site = Site("a", "b", ("c",), tls=True, girder_url=url)
    (text,) = [file.text for file in site.files() if file.path.name == "girder.env"]
    names = ("GIRDER_URL_ROOT", "GIRDER_SETTING_CORE_SERVER_ROOT")
    found = dict(re.findall(rf"^({'|'.join(names)})=(.*)$", text, re.MULTILINE))
    assert found == dict(zip(names, expected, strict=False))
    assert "\n\n" not in text


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@needs_systemd
def test_site_units_are_correct_and_confined(site: Path, tmp_path: Path) -> None:
    units = [
        site / "girder" / "girder-dask-girder.service",
        site / "scheduler" / "girder-dask-scheduler.service",
        site / "worker" / "girder-dask-worker@.service",
    ]
    for unit in units:
        # It looks for the programs of units, and knows no accounts that are not there.
        done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert str(unit.name) not in done.stderr, done.stderr
        command = ["systemd-analyze", "security", "--offline=true", "--threshold=40", str(unit)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-300:]
        text = unit.read_text()
        assert re.findall(r"^StartLimitIntervalSec=(.*)$", text, re.MULTILINE) == ["0"]
        assert f"User=girder-dask-{unit.parent.name}\n" in text
        account = (unit.parent / "accounts.conf").read_text()
        assert f"\nu girder-dask-{unit.parent.name} - " in account


@needs_systemd
def test_site_timer_runs_doctor_with_the_settings_of_the_scheduler(site: Path) -> None:
    unit = site / "scheduler" / "girder-dask-doctor.service"
    for checked in (unit, unit.with_suffix(".timer")):
        done = subprocess.run(
            ["systemd-analyze", "verify", checked], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "girder-dask-doctor" not in done.stderr, done.stderr
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=40", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-300:]
    address = config(site / "client")["scheduler-address"]
    (started,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    assert started == f"{site}/scheduler/start girder-dask doctor --scheduler {address}"


def test_site_worker_unit_asks_no_process_of_a_task_to_end(site: Path) -> None:
    (unit,) = (site / "worker").glob("*.service")
    assert re.findall(r"^KillMode=(.*)$", unit.read_text(), re.MULTILINE) == ["mixed"]


def test_site_certificates_are_of_one_authority(site: Path) -> None:
    if not (site / "authority").exists():
        assert not list(site.rglob("*.pem"))
        return
    for folder in folders(site):
        files = [str(folder / name) for name in ("ca.pem", f"{folder.name}.pem")]
        subprocess.run(["openssl", "verify", "-CAfile", *files], check=True, capture_output=True)


def test_init_again_changes_nothing(tmp_path: Path) -> None:
    assert init(tmp_path, "--hosts", HOSTS).exit_code == 0
    before = content(tmp_path)
    again = init(tmp_path, "--hosts", HOSTS)
    assert again.exit_code == 0
    assert "Wrote" not in again.output
    assert content(tmp_path) == before


def test_init_overwrites_no_file_that_was_changed(tmp_path: Path) -> None:
    assert init(tmp_path, "--hosts", HOSTS).exit_code == 0
    changed = tmp_path / "girder" / "girder.env"
    changed.write_text("GIRDER_MONGO_URI=mongodb://user:password@db\n")
    before = content(tmp_path)
    refused = init(tmp_path, "--hosts", HOSTS, "--scheduler-port", "9000")
    assert refused.exit_code == 1
    assert str(changed) in refused.output
    assert content(tmp_path) == before
    # More workers, and what was changed is kept.
    assert init(tmp_path, "--hosts", TWO_WORKERS, "--keep").exit_code == 0
    assert changed.read_text() == "GIRDER_MONGO_URI=mongodb://user:password@db\n"
    assert (tmp_path / "worker-node2.example.org" / "worker.key").exists()


def test_init_copies_renewed_certificates(tmp_path: Path) -> None:
    assert init(tmp_path, "--tls").exit_code == 0
    old = (tmp_path / "worker" / "worker.key").read_bytes()
    renewed = CliRunner().invoke(main, ["certs", "renew", str(tmp_path / "authority")])
    assert renewed.exit_code == 0
    again = init(tmp_path, "--tls")
    assert f"Wrote {tmp_path}/worker/worker.key" in again.output
    new = (tmp_path / "worker" / "worker.key").read_bytes()
    assert new != old
    assert new == (tmp_path / "authority" / "worker.key").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        ["--hosts", "a b"],
        ["--hosts", "a,b;rm -rf,c"],
        ["--hosts", "a,,c"],
        ["--hosts", "::1"],
        ["--prefix", "relative"],
        ["--prefix", "/a b"],
        ["--prefix", "/a$(id)"],
        ["--state", "/a\n"],
        ["--girder-url", "ftp://a"],
        ["--girder-url", "http://a/#b"],
        ["--girder-url", "http://a:x"],
    ],
)
def test_init_refuses_names_that_a_shell_or_systemd_would_read_otherwise(
    tmp_path: Path, options: list[str]
) -> None:
    done = init(tmp_path, *options)
    assert done.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_site_refuses_what_init_refuses() -> None:
    with pytest.raises(GirderDaskError, match="not an absolute path"):
        Site("a", "b", ("c",), tls=False, prefix="/a'b")


def test_deploy_shows_what_init_writes() -> None:
    expected = {str(file.path): (file.text, file.mode & 0o100) for file in EXAMPLE.files()}
    found = {
        str(path.relative_to(DEPLOY)): (path.read_text(), path.stat().st_mode & 0o100)
        for path in written_by_init()
    }
    assert found == expected, "run: python -m tests.support.deploy_files"
    assert not [path for path in DEPLOY.rglob("*") if path.is_symlink()]


def test_deploy_is_what_the_command_writes(tmp_path: Path) -> None:
    assert init(tmp_path, "--hosts", HOSTS).exit_code == 0
    for path in written_by_init():
        assert (tmp_path / path.relative_to(DEPLOY)).read_text() == path.read_text()
