"""The metrics of certificates that are not the scheduler's own."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pytest

from girder_dask import config
from girder_dask.scheduler.metrics.https_certificate import HttpsCertificate
from girder_dask.scheduler.metrics.of_workers import WorkerMetrics
from girder_dask.standalone.authority import Authority as DaskAuthority
from girder_dask.tls import EXPIRY_METRIC, ExpiryMetric
from tests.support.authority_site import Authority
from tests.support.local_girder import serving


def samples(families: Any, ending: str) -> list[Any]:
    return [
        sample for family in families for sample in family.samples if sample.name.endswith(ending)
    ]


async def test_https_certificate_keeps_the_last_time_that_was_accepted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    config.get("ca-file")  # registers the defaults, which the block then overrides
    with serving(authority.server("localhost")) as girder:
        certificate = HttpsCertificate(girder.url)
        retry_s = await certificate.step()
        assert list(certificate.families()) == [], "its authority is not trusted"
        with dask.config.set({"girder.ca-file": str(authority.path)}):
            interval_s = await certificate.step()
    assert retry_s < interval_s
    (sample,) = samples(certificate.families(), "_https_certificate_expiry_timestamp_seconds")
    assert 0.9 < (sample.value - time.time()) / 86400 <= 1.0
    assert await certificate.step() == retry_s
    assert samples(certificate.families(), "_seconds") == [sample]


def of_worker(host: str, said: Any) -> Any:
    return SimpleNamespace(host=host, metrics={EXPIRY_METRIC: said})


@pytest.mark.parametrize(
    "said", [None, [], ["w.pem"], ["w.pem", "soon"], [7, 1.0], ["w.pem", math.nan], {"w.pem": 1.0}]
)
def test_worker_metrics_have_the_first_certificate_that_expires(said: Any) -> None:
    workers = [
        of_worker("a", ("worker.pem", 200.0)),
        of_worker("b", ["ca.pem", 100]),
        of_worker("c", said),
    ]
    scheduler: Any = SimpleNamespace(workers=dict(enumerate(workers)))
    target: Any = SimpleNamespace(targets=lambda: {False: 3, True: 1})
    families = list(WorkerMetrics(scheduler, target).families())
    (sample,) = samples(families, "_worker_certificate_expiry_timestamp_seconds")
    assert (sample.value, sample.labels) == (100.0, {"host": "b", "file": "ca.pem"})
    wanted = samples(families, "_wanted_workers")
    assert [(each.labels, each.value) for each in wanted] == [
        ({"gpu": "false"}, 3),
        ({"gpu": "true"}, 1),
    ]


async def test_expiry_metric_is_that_of_the_first_file_that_can_be_read(tmp_path: Path) -> None:
    authority = DaskAuthority(tmp_path / "authority")
    authority.create()
    authority.issue("worker", ["127.0.0.1"], name="worker", days=5)
    files = {
        "ca-file": str(authority.certificate),
        "worker": {"cert": str(authority.directory / "worker.pem")},
        "client": {"cert": str(tmp_path / "none.pem")},
    }
    with dask.config.set({"distributed.comm.tls": files}):
        metric = ExpiryMetric()
        found = await metric(None)
    assert found is not None
    assert found[0] == "worker.pem"
    assert found[1] - time.time() == pytest.approx(5 * 86400, abs=60)
    assert await metric(None) == found, "files are read from time to time only"
    assert await ExpiryMetric()(None) is None
