"""Scrapes of a stack's metrics, and jobs that end in each state."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests
from prometheus_client.parser import text_string_to_metric_families

from girder_dask import credential
from girder_dask.jobs import FINAL, JobStatus
from girder_dask.protocol.names import METRICS_KEY_NAME, METRICS_SCOPE
from girder_dask.standalone.checks import girder_answers
from tests.support.girder_services import free_port, wait_until
from tests.support.rest_site import ask, call, submit

__all__ = [
    "FAILING",
    "TASK",
    "TITLE",
    "Scrape",
    "another_girder",
    "metrics_key",
    "of_girder",
    "of_scheduler",
    "run_jobs_of_all_ends",
    "until_scraped",
]

TITLE = "A title that no metric may show"
TASK = "my_worker_tasks:my_task"
FAILING = "my_worker_tasks.endings:fails"


class Scrape:
    """The samples of an exposition, by name and labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def get(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a name that have these labels."""
        return sum(number for each, number in self.samples(name) if labels.items() <= each.items())

    def samples(self, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
        """Yield the labels and the value of each sample of a name."""
        for (found, labels), number in self._samples.items():
            if found == name:
                yield dict(labels), number

    @property
    def names(self) -> set[str]:
        """The names of all samples."""
        return {name for name, _ in self._samples}


def metrics_key(stack: Any) -> str:
    """Return a new API key that may read metrics."""
    return credential.create(stack.admin, name=METRICS_KEY_NAME, scope=METRICS_SCOPE)


def of_girder(stack: Any, key: str) -> Scrape:
    """Return the metrics of Girder."""
    bearer = {"Authorization": f"Bearer {key}"}
    answer = ask(stack, "GET", "dask/metrics", headers=bearer)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain")
    return Scrape(answer.text)


def of_quiet_girder(stack: Any, key: str) -> Scrape:
    """End all jobs of other tests, and return the metrics of Girder after that."""
    stack.cancel_open_jobs()
    wait_until(lambda: not stack.call(count_open), "the end of all jobs", 60)
    # An answer is given again for some seconds. Another one tells of more processor time.
    former = of_girder(stack, key).text
    return until_scraped(lambda: of_girder(stack, key), lambda found: found.text != former)


def count_open() -> int:
    """Return how many jobs a scheduler has or may claim. Run it in Girder."""
    from girder_jobs.models.job import Job

    ended = [int(status) for status in FINAL]
    query = {"dask.open": True, "status": {"$nin": ended}}
    return int(Job().collection.count_documents(query))


def of_scheduler(stack: Any) -> Scrape:
    """Return the metrics of the scheduler, ours and Dask's."""
    url = stack.dashboard.removesuffix("/status") + "/metrics"
    answer = requests.get(url, timeout=30)
    assert answer.status_code == 200, answer.text
    return Scrape(answer.text)


def run_jobs_of_all_ends(stack: Any) -> list[str]:
    """Run jobs that succeed, fail, are retried and are canceled; return their ids."""
    calls = [
        call(TASK, "text", title=TITLE),
        call(FAILING, "no", title=TITLE, retries=1),
        call("my_worker_tasks.endings:slow", 60.0, 600, title=TITLE),
        call("nowhere_to_be_found:task", title=TITLE),
    ]
    made = submit(stack, *calls, by=stack.admin).json()["jobs"]
    done, failed, slow, unknown = (job["_id"] for job in made)
    stack.wait(slow, status=JobStatus.RUNNING)
    assert ask(stack, "PUT", f"job/{slow}/cancel", by=stack.admin).status_code == 200
    stack.wait(done, status=JobStatus.SUCCESS)
    stack.wait(failed, status=JobStatus.ERROR)
    stack.wait(slow, status=JobStatus.CANCELED)
    stack.wait(unknown, status=JobStatus.ERROR)
    return [done, failed, slow, unknown]


def until_scraped(scrape: Any, is_there: Any, timeout_s: float = 60.0) -> Scrape:
    """Scrape until a condition holds; an answer is given again for some seconds."""
    deadline = time.monotonic() + timeout_s
    while True:
        found: Scrape = scrape()
        if is_there(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


@contextlib.contextmanager
def another_girder(stack: Any, log: Path, **env: str) -> Iterator[Any]:
    """Run another process of Girder on the same database; yield a stack that asks that one."""
    port = free_port()
    part = stack.part("girder")
    command = [*part.command[: part.command.index("-p")], "-p", str(port)]
    url = f"http://127.0.0.1:{port}/api/v1"
    with log.open("w") as output:
        process = subprocess.Popen(command, env={**part.env, **env}, stdout=output, stderr=output)
        try:
            wait_until(lambda: girder_answers(url), "the other Girder", 90)
            yield SimpleNamespace(api=url)
        finally:
            process.terminate()
            process.wait(30)
