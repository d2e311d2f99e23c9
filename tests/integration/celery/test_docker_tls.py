"""girder_worker's ``docker_run`` at a Docker engine behind TLS, with certificates of the site."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from tests.support.celery_site import wait_until
from tests.support.chunk_receiver import receiving_chunks
from tests.support.docker_engine import Engine, tls_engine, worker_settings
from tests.support.package_site import PackageSite


@pytest.fixture(scope="module")
def engine(package_site: PackageSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The engine that the worker uses."""
    with (
        tls_engine(tmp_path_factory.mktemp("tls_engine")) as (engine, variables),
        worker_settings(package_site, variables),
    ):
        yield engine


@pytest.fixture(autouse=True)
def _nothing_is_left(package_site: PackageSite, engine: Engine) -> Iterator[None]:
    """Check after each test that no container and no directory is left."""
    before = package_site.temporary_files()
    yield
    wait_until(lambda: not engine.containers())
    wait_until(lambda: package_site.temporary_files() <= before)


def _says(script: str) -> Any:
    def make() -> dict[str, Any]:
        return {"container_args": ["sh", "-c", script]}

    return make


def test_docker_run_behind_tls_loses_no_output(package_site: PackageSite) -> None:
    script = "for n in $(seq 20); do echo out $n; echo error $n >&2; done"
    jobs = [package_site.docker_run(_says(script)) for _ in range(8)]
    lines = {f"{name} {n}" for n in range(1, 21) for name in ("out", "error")}
    for job_id in jobs:
        package_site.wait(job_id, status=JobStatus.SUCCESS)
        log = package_site.container_log(job_id).splitlines()
        assert (len(log), set(log)) == (40, lines)


def test_docker_run_behind_tls_sends_each_byte_of_both_streams_once(
    package_site: PackageSite,
) -> None:
    def make(url: str) -> dict[str, Any]:
        from their_tasks.streams import SentTo

        # In pieces, so that the connection is empty in between and full at times.
        script = "for n in $(seq 50); do seq 1000; seq 1000 >&2; done; sleep 0.3; echo end"
        streams = [
            SentTo("ContainerStdOut", f"{url}/out"),
            SentTo("ContainerStdErr", f"{url}/error"),
        ]
        return {"container_args": ["sh", "-c", script], "stream_connectors": streams}

    with receiving_chunks() as server:
        package_site.run_container(make, server.url)
    received = {path.lstrip("/"): body for path, _, body in server.received}
    lines = b"".join(b"%d\n" % n for n in range(1, 1001)) * 50
    assert received == {"out": lines + b"end\n", "error": lines}


def test_docker_run_behind_tls_stops_its_container_when_canceled(
    package_site: PackageSite,
) -> None:
    job_id = package_site.docker_run(_says("trap '' TERM; echo ready; while :; do sleep 0.1; done"))
    wait_until(lambda: "ready" in package_site.container_log(job_id))
    package_site.admin.put(f"job/{job_id}/cancel")
    package_site.wait(job_id, status=JobStatus.CANCELED)
