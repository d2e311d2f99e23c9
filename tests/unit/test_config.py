"""Settings come from Dask's configuration, its files and the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml

from girder_dask import config
from girder_dask.errors import GirderDaskError

DEFAULTS = yaml.safe_load((Path(config.__file__).parent / "girder_dask.yaml").read_text())["girder"]


def keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in tree.items():
        found += keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return found


@pytest.mark.parametrize("key", keys(DEFAULTS))
def test_every_setting_has_a_use(key: str) -> None:
    package = Path(config.__file__).parent
    assert any(f'"{key}"' in path.read_text() for path in package.rglob("*.py"))


def test_a_default_is_read_with_its_unit() -> None:
    assert config.get("worker.log-level") == "INFO"
    assert config.seconds("scheduler.retry-delay") == 0.5
    assert config.nbytes("max-payload") == 16 * 1024**2


def test_what_is_set_comes_first_and_plain_numbers_are_seconds_and_bytes() -> None:
    with dask.config.set({"girder.worker.cancel-grace": 7, "girder.worker.max-result": 9}):
        assert config.seconds("worker.cancel-grace") == 7.0
        assert config.nbytes("worker.max-result") == 9
    assert config.seconds("worker.cancel-grace") == 5.0


NEW_PROCESS = """
import dask.config
from girder_dask import config

dask.config.defaults[:] = [d for d in dask.config.defaults if "girder" not in d]
dask.config.config.pop("girder", None)  # as before the first use
"""


@pytest.mark.parametrize(
    "change",
    ["{'girder.worker.log-level': 'DEBUG'}", "{'girder': {'worker': {'log-level': 'DEBUG'}}}"],
)
def test_the_defaults_survive_a_first_use_within_set(change: str) -> None:
    shown = run(
        f"{NEW_PROCESS}"
        f"with dask.config.set({change}):\n"
        "    print(config.get('worker.log-level'), config.get('max-log'), end=' ')\n"
        "    print(config.get('worker.max-result'))\n"
        "print(config.get('worker.log-level'), config.get('max-log'))\n"
        "print(dask.config.get('girder.scheduler.pull-interval'))\n"
    )
    assert shown.splitlines() == ["DEBUG 256 MiB 1 MiB", "INFO 256 MiB", "10 s"]


def test_the_defaults_survive_refresh() -> None:
    shown = run(
        "import dask.config; from girder_dask import config;"
        "dask.config.set({'girder.max-log': 1}); print(config.get('max-log'));"
        "dask.config.refresh(); print(config.get('max-log'));"
        "print(dask.config.get('girder.worker.log-level'))"
    )
    assert shown.split("\n") == ["1", "256 MiB", "INFO"]


def test_dask_knows_the_defaults_once_both_are_imported() -> None:
    shown = run(
        "import dask.config, girder_dask.config; print(dask.config.get('girder.worker.log-level'))"
    )
    assert shown == "INFO"


def test_the_defaults_are_registered_once() -> None:
    config.get("max-log")
    config.get("max-log")
    assert sum("girder" in defaults for defaults in dask.config.defaults) == 1


def test_a_setting_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(KeyError):
        config.get("worker.colour")


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_environment_and_files_of_dask_are_read(tmp_path: Path) -> None:
    (tmp_path / "girder.yaml").write_text(
        "girder:\n  worker:\n    max-result: 3 kB\n    log-level: WARNING\n"
    )
    shown = run(
        "from girder_dask import config as c;"
        "print(c.get('api-url'), c.get('worker.log-level'), c.nbytes('worker.max-result'),"
        "c.seconds('worker.flush-interval'))",
        DASK_CONFIG=str(tmp_path),
        DASK_GIRDER__API_URL="http://girder/api/v1",
        DASK_GIRDER__WORKER__LOG_LEVEL="DEBUG",
    )
    assert shown == "http://girder/api/v1 DEBUG 3000 0.2"


def test_nothing_is_read_at_import() -> None:
    assert run("import girder_dask.config, sys; print('dask' in sys.modules)") == "False"


def test_the_credential_is_the_one_that_is_set() -> None:
    assert config.credential() is None
    with dask.config.set({"girder.credential": "key", "girder.credential-file": "/nowhere"}):
        assert config.credential() == "key"


def test_the_credential_is_read_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text("the-key\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with dask.config.set({"girder.credential-file": "~/key"}):
        assert config.credential() == "the-key"


@pytest.mark.skipif(os.getuid() != 0, reason="files of other accounts need root")
@pytest.mark.parametrize(
    ("mode", "owner", "group", "is_named"),
    [
        (0o600, 1234, 1234, False),
        (0o640, 1234, 0, True),
        (0o644, 0, 0, True),
        # As Kubernetes mounts a secret: of root, for the group of the process.
        (0o550, 0, 0, False),
        (0o440, 0, 1234, True),
        (0o660, 0, 0, True),
    ],
)
def test_a_credential_file_that_others_can_read_is_named(
    mode: int, owner: int, group: int, is_named: bool, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_text("the-key")
    os.chown(path, owner, group)
    path.chmod(mode)
    with dask.config.set({"girder.credential-file": str(path)}):
        problem = config.credential_file_problem()
    assert problem == (f"{path} has mode {mode:o}" if is_named else None)


def test_a_credential_file_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with (
        dask.config.set({"girder.credential-file": str(missing)}),
        pytest.raises(GirderDaskError, match=r"No such file.*girder-dask credential") as caught,
    ):
        config.credential()
    assert str(missing) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pull-interval", "soon"),
        ("pull-interval", None),
        ("pull-interval", "10 MiB"),
        ("pull-interval", -1),
        ("buffer", "10 s"),
        ("batch-size", "many"),
        ("batch-size", [1]),
        ("jobs-per-thread", 0),
        ("jobs-per-thread", True),
        ("jobs-per-thread", "many"),
    ],
)
def test_check_refuses_a_value_that_cannot_be_read(key: str, value: object) -> None:
    with (
        dask.config.set({f"girder.scheduler.{key}": value}),
        pytest.raises(GirderDaskError, match=rf"girder\.scheduler\.{key} is "),
    ):
        config.check("scheduler")


def test_check_accepts_the_defaults_and_plain_numbers() -> None:
    config.check("scheduler")
    config.check("worker")
    with dask.config.set({"girder.scheduler.pull-interval": 2, "girder.scheduler.buffer": 9}):
        config.check("scheduler")
    for jobs_per_thread in (None, 0.5):
        with dask.config.set({"girder.scheduler.jobs-per-thread": jobs_per_thread}):
            config.check("scheduler")
