"""A real Prometheus scrapes a stack, and does each query of the dashboard and of the alarms."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from girder_dask.jobs import JobStatus
from tests.support.fault_site import FaultStack
from tests.support.girder_services import wait_until
from tests.support.metrics_site import (
    TITLE,
    metrics_key,
    of_girder,
    of_scheduler,
    run_jobs_of_all_ends,
)
from tests.support.prometheus import (
    Prometheus,
    alert_queries,
    dashboard_queries,
    scraping,
    write_files,
)
from tests.support.rest_site import call, start_waiting, submit

TEMPLATES = Path(__file__).parents[2] / "girder_dask/cli/site/templates/monitoring"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A stack with TLS, so that it has certificates, and with logs as JSON."""
    directory, env = tmp_path_factory.mktemp("stack"), {"DASK_GIRDER__LOG_FORMAT": "json"}
    with FaultStack(directory, workers=1, threads=2, tls=True, env=env) as started:
        yield started


@pytest.fixture(scope="module")
def folder(stack: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(stack, tmp_path_factory.mktemp("site"), metrics_key(stack))


@pytest.fixture(scope="module")
def prometheus(stack: Any, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that has scraped jobs of all ends, one that waits, and the loss of a worker."""
    with scraping(folder) as running:
        running.until("count(up == 1) == 2 and on() girder_dask_processes")
        run_jobs_of_all_ends(stack)
        running.until("sum(girder_dask_jobs_ended_total) >= 4")
        stack.call(start_waiting)
        lose_worker(stack)
        running.until("girder_dask_scheduler_lost_workers_total > 0")
        running.until('sum(girder_dask_jobs{state="QUEUED"}) > 0')
        running.until("sum(increase(girder_dask_jobs_ended_total[1m])) > 0")
        yield running


def lose_worker(stack: Any) -> None:
    """Kill the process of a worker while a job runs there, and wait for the job."""
    go = stack.directory / "go"
    waits = call("my_worker_tasks.values:hold", str(go), title=TITLE)
    (made,) = submit(stack, waits, by=stack.admin).json()["jobs"]
    stack.wait(made["_id"], status=JobStatus.RUNNING)
    stack.worker_process("worker-0").kill()
    go.touch()
    stack.wait(made["_id"], status=JobStatus.SUCCESS, timeout=90)


def test_prometheus_accepts_the_configuration_and_the_rules(folder: Path) -> None:
    for kind, name in (("config", "prometheus.yaml"), ("rules", "alerts.yaml")):
        checked = subprocess.run(
            ["promtool", "check", kind, str(folder / name)], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_prometheus_scrapes_both_processes(prometheus: Prometheus) -> None:
    prometheus.until("count(up == 1) == 2")
    jobs = {each["metric"]["job"] for each in prometheus.query("up")}
    assert jobs == {"girder_dask_girder", "girder_dask_scheduler"}


def test_each_query_of_the_dashboard_has_a_series(prometheus: Prometheus, folder: Path) -> None:
    queries = dashboard_queries(folder)
    assert len(queries) > 30
    assert never_seen(prometheus, queries) == {}


def never_seen(prometheus: Prometheus, queries: dict[str, str]) -> dict[str, str]:
    """Return the queries that have no series, also not after some more scrapes."""
    seen: set[str] = set()

    def all_seen() -> bool:
        seen.update(name for name, query in queries.items() if prometheus.query(query))
        return len(seen) == len(queries)

    with contextlib.suppress(AssertionError):
        wait_until(all_seen, "a series of each query")
    return {name: query for name, query in queries.items() if name not in seen}


def test_each_query_of_the_alarms_has_a_series(prometheus: Prometheus, folder: Path) -> None:
    queries = alert_queries(folder)
    assert len(queries) > 15
    of_https = queries.pop("GirderDaskHttpsCertificateExpires")
    assert prometheus.query(of_https) == [], "the Girder of tests has no https"
    assert never_seen(prometheus, queries) == {}


def test_alarms_of_certificates_fire_two_weeks_before_the_end(folder: Path) -> None:
    """As Prometheus itself computes them."""
    prefix, days = "girder_dask_scheduler", 86400
    series = [
        f'{prefix}_certificate_expiry_timestamp_seconds{{job="j",file="scheduler.pem"}}',
        f'{prefix}_worker_certificate_expiry_timestamp_seconds{{host="h",file="w.pem"}}',
        f"{prefix}_https_certificate_expiry_timestamp_seconds",
    ]
    names = {
        "GirderDaskCertificateExpires": {"job": "j", "file": "scheduler.pem"},
        "GirderDaskWorkerCertificateExpires": {"host": "h", "file": "w.pem"},
        "GirderDaskHttpsCertificateExpires": {},
    }
    (group,) = yaml.safe_load((folder / "alerts.yaml").read_text())["groups"]
    notes = {rule["alert"]: rule["annotations"] for rule in group["rules"]}

    def case(left: int, *, fires: bool) -> dict[str, Any]:
        found = [
            {
                "eval_time": "2h",
                "alertname": name,
                "exp_alerts": [
                    {
                        "exp_labels": {"severity": "warning", **labels},
                        "exp_annotations": notes[name],
                    }
                ]
                if fires
                else [],
            }
            for name, labels in names.items()
        ]
        inputs = [{"series": each, "values": f"{left * days}x200"} for each in series]
        return {"interval": "1m", "input_series": inputs, "alert_rule_test": found}

    tests = {"rule_files": ["alerts.yaml"], "tests": [case(13, fires=True), case(15, fires=False)]}
    (folder / "alerts_test.yaml").write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        ["promtool", "test", "rules", str(folder / "alerts_test.yaml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alarms_of_a_healthy_site_are_silent(prometheus: Prometheus, folder: Path) -> None:
    (group,) = yaml.safe_load((folder / "alerts.yaml").read_text())["groups"]
    # A scrape that fails on a busy machine makes some true for a moment, which is no alarm.
    silent: set[str] = set()

    def all_silent() -> bool:
        silent.update(r["alert"] for r in group["rules"] if not prometheus.query(r["expr"]))
        return len(silent) == len(group["rules"])

    # Three of five jobs failed or were canceled, but too few of a task for an alarm.
    wait_until(all_silent, "silence")


def test_scheduler_metrics_count_a_lost_worker_once(prometheus: Prometheus) -> None:
    prometheus.until("girder_dask_scheduler_lost_workers_total == 1")
    prometheus.until('girder_dask_scheduler_retries_total{cause="worker_lost"} == 1')
    prometheus.until("girder_dask_scheduler_out_of_memory_workers_total == 0")


def test_metrics_show_when_certificates_expire(prometheus: Prometheus, stack: Any) -> None:
    of_both = '{__name__=~"girder_dask(_scheduler)?_certificate_expiry_timestamp_seconds"} - time()'
    prometheus.until(f"count(count by (job) ({of_both})) == 2")
    found = prometheus.query(of_both)
    assert {each["metric"]["job"] for each in found} == {
        "girder_dask_girder",
        "girder_dask_scheduler",
    }
    assert all(float(each["value"][1]) > 30 * 86400 for each in found)
    prometheus.until("girder_dask_scheduler_worker_certificate_expiry_timestamp_seconds")
    (first,) = prometheus.query(
        "girder_dask_scheduler_worker_certificate_expiry_timestamp_seconds - time()"
    )
    assert (first["metric"]["host"], first["metric"]["file"]) == ("127.0.0.1", "worker.pem")
    assert float(first["value"][1]) > 30 * 86400
    assert str(stack.directory) not in of_scheduler(stack).text


def test_page_names_each_metric(prometheus: Prometheus, stack: Any, folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    shown = of_girder(stack, (folder / "metrics.key").read_text().strip()).names
    shown |= of_scheduler(stack).names
    ours = {
        re.sub("_(bucket|count|sum)$", "", name)
        for name in shown
        if name.startswith("girder_dask_") and not name.endswith("_created")
    }
    assert len(ours) > 30
    assert {name for name in ours if f"`{name}`" not in page} == set()


@pytest.mark.parametrize("name", ["girder", "scheduler", "worker-0"])
def test_logs_as_json_have_one_object_a_line(prometheus: Prometheus, stack: Any, name: str) -> None:
    lines = stack.part(name).log.read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("{"))
    found = [json.loads(line) for line in lines[first:] if line.startswith("{")]
    assert all({"time", "level", "logger", "message"} <= each.keys() for each in found)
    assert any(each["logger"].startswith(("girder_dask", "distributed")) for each in found)
    # A worker that is killed is followed by one that begins with text again.
    text = [line for line in lines[first:] if not line.startswith("{")]
    assert name == "worker-0" or text == []


def test_logs_as_json_name_the_job(prometheus: Prometheus, stack: Any) -> None:
    """The worker's log has the error of Dask's task, whose key names the job."""
    lines = stack.part("worker-0").log.read_text().splitlines()
    jobs = {json.loads(line).get("job") for line in lines if line.startswith("{")}
    assert any(stack.job(job)["title"] == TITLE for job in jobs - {None})


def test_page_explains_each_alarm() -> None:
    page = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    (group,) = yaml.safe_load((TEMPLATES / "alerts.yaml").read_text())["groups"]
    assert [rule["alert"] for rule in group["rules"] if f"`{rule['alert']}`" not in page] == []


def test_dashboard_is_what_grafana_imports() -> None:
    dashboard = json.loads((TEMPLATES / "dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in dashboard["panels"])
