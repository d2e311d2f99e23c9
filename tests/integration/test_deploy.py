"""A site that ``girder-dask init`` has written, started as its README says."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from girder_dask import standalone
from girder_dask.jobs import JobStatus
from girder_dask.standalone import checks, ports
from tests.support.deployed_site import PASSWORD, Site, blocks, register, run_job
from tests.support.storage import Storage


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """The MongoDB and the Redis of the sites here."""
    with Storage(tmp_path_factory.mktemp("storage")) as started:
        yield started


@pytest.fixture
def site(storage: Storage, tmp_path: Path) -> Iterator[Site]:
    options = {
        f"--{name}-port": str(ports.choose(None)) for name in ("girder", "scheduler", "dashboard")
    }
    site = Site(tmp_path / "site", options, storage.env())
    try:
        yield site
    finally:
        site.close()


def start_job() -> str:
    from my_worker_tasks import my_task

    return str(my_task.delay("recipe").id)


@pytest.mark.timeout(500)
def test_site_of_init_runs_a_job_with_tls(site: Site, tmp_path: Path) -> None:
    api = site.api
    settings = (site.directory / "scheduler" / "scheduler.env").read_text()
    (dashboard,) = re.findall(r"^DASHBOARD_ADDRESS=(.*)$", settings, re.MULTILINE)
    dashboard = f"http://{dashboard}"

    (serve,) = site.shell["Girder"]
    site.start(serve, "girder", lambda: checks.girder_answers(api))
    client = register(api, tmp_path / "assetstore")

    make_credential, scheduler = site.shell["Scheduler"]
    made = site.run(make_credential, GIRDER_PASSWORD=PASSWORD)
    assert made.returncode == 0, made.stderr
    credential = site.directory / "scheduler" / "girder.credential"
    assert stat.S_IMODE(credential.stat().st_mode) == 0o600
    site.start(scheduler, "scheduler", lambda: checks.registered_workers(dashboard) is not None)

    (worker,) = site.shell["Workers"]
    site.start(worker, "worker", lambda: checks.registered_workers(dashboard) == 2)

    job = run_job(client, start_job)
    assert job["status"] == JobStatus.SUCCESS
    assert "arg1 is 'recipe'" in "".join(job["log"])

    choose_config, doctor = site.shell["Notebooks"]
    (notebook,) = blocks(site.directory, "python")["Notebooks"]
    (tmp_path / "notebook.py").write_text(notebook)
    shown = site.run(f"{choose_config}\npython {tmp_path}/notebook.py")
    assert shown.stdout.strip() == "6", shown.stderr
    found = site.run(f"{choose_config}\n{doctor}")
    assert found.returncode == 0, found.stdout + found.stderr
    assert_workers_have_no_secret(site)


def assert_workers_have_no_secret(site: Site) -> None:
    """The environment of workers, which tasks see, names no secret of Girder."""
    started = psutil.Process(site.process("worker").pid)
    for process in [started, *started.children(recursive=True)]:
        names = {name for name in process.environ() if name.startswith(("GIRDER_", "DASK_GIRDER"))}
        # The secret of the tests' own route is given to all processes here.
        assert names <= {"GIRDER_DASK_TESTING_SECRET"}


def test_standalone_loads_the_hooks_from_its_configuration() -> None:
    packaged = Path(standalone.__file__).with_name("girder_dask.yaml")
    config = yaml.safe_load(packaged.read_text())
    assert config["distributed"]["scheduler"]["preload"] == ["girder_dask.scheduler_hooks"]
