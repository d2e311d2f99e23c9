"""The files of ``deploy/slurm``: settings, and the walltime of workers."""

from __future__ import annotations

import importlib.util
import re
import signal
import sys
from typing import Any

import dask.config
import pytest
import yaml

from tests.support.deploy_files import DEPLOY

# Its import makes Ctrl-C end the process without an exception, in all tests of this process.
_on_interrupt = signal.getsignal(signal.SIGINT)
import dask_jobqueue  # noqa: E402

signal.signal(signal.SIGINT, _on_interrupt)

SLURM = DEPLOY / "slurm"


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("cluster", SLURM / "cluster.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def settings() -> dict[str, Any]:
    return dict(yaml.safe_load((SLURM / "jobqueue.yaml").read_text()))


@pytest.mark.parametrize(
    ("walltime", "expected"),
    [("00:01:00", 60), ("12:00:00", 43200), ("1-00:00:00", 86400), ("30:00", 1800), ("45", 45)],
)
def test_seconds_of_a_walltime(cluster: Any, walltime: str, expected: float) -> None:
    assert cluster.seconds(walltime) == expected


@pytest.mark.parametrize(("walltime_s", "grace_s"), [(60, 25), (3600, 600), (43200, 7200)])
def test_lifetime_ends_with_the_grace_before_the_walltime(
    cluster: Any, walltime_s: float, grace_s: float
) -> None:
    name, lifetime, stagger, spread = cluster.lifetime_options(walltime_s, grace_s)
    assert (name, stagger) == ("--lifetime", "--lifetime-stagger")
    latest = float(lifetime[:-1]) + float(spread[:-1])
    assert latest + grace_s < walltime_s
    assert float(lifetime[:-1]) - float(spread[:-1]) > 0


def test_lifetime_refuses_a_grace_that_leaves_no_time(cluster: Any) -> None:
    with pytest.raises(SystemExit, match="leaves them no time"):
        cluster.lifetime_options(600, 600)


def test_settings_are_those_that_jobqueue_knows() -> None:
    found = settings()
    slurm = found["jobqueue"]["slurm"]
    known = dask.config.get("jobqueue.slurm")
    assert set(slurm) <= set(known)
    job = dask_jobqueue.slurm.SLURMJob(
        "tls://192.0.2.1:8786",
        name="worker",
        **{key.replace("-", "_"): slurm[key] for key in ("cores", "memory", "walltime", "python")},
        job_script_prologue=slurm["job-script-prologue"],
        worker_extra_args=slurm["worker-extra-args"],
    )
    script = job.job_script()
    assert "#SBATCH -t 12:00:00" in script
    assert "export DASK_CONFIG=/etc/girder_dask/worker/dask.yaml" in script
    assert "--dashboard-address 127.0.0.1:0" in script


def test_directories_are_those_that_the_page_creates() -> None:
    slurm = settings()["jobqueue"]["slurm"]
    (line,) = re.findall(
        r"^ *install -d -m 700 .*$", (SLURM / "README.md").read_text(), re.MULTILINE
    )
    directories = {word for word in line.split() if word.startswith("/")}
    assert directories == {slurm["local-directory"], slurm["log-directory"]}


def test_settings_leave_workers_time(cluster: Any) -> None:
    from dask.utils import parse_timedelta

    found = settings()
    walltime_s = cluster.seconds(found["jobqueue"]["slurm"]["walltime"])
    grace_s = parse_timedelta(found["girder"]["scheduler"]["leave-grace"])
    assert cluster.lifetime_options(walltime_s, grace_s)


def test_cluster_knows_the_batch_systems_of_jobqueue(cluster: Any) -> None:
    classes = {
        value
        for name, value in vars(dask_jobqueue).items()
        if name.endswith("Cluster") and isinstance(value, type)
    }
    assert classes <= {*cluster.SYSTEMS.values(), dask_jobqueue.core.JobQueueCluster}
