"""Waiting for many jobs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from girder_dask import JobCanceled, JobFailed, JobResult, MapResult, as_completed, gather
from girder_dask.client.backend import set_backend
from girder_dask.errors import GirderError
from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import StoredResult
from girder_dask.protocol.payload import pack_value
from girder_dask.tasks.composition import GroupResult
from tests.support.deadline import until
from tests.support.recording_backend import RecordingBackend


class Site(RecordingBackend):
    """Jobs that end one by one, each time that all are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[tuple[str, JobStatus]] = []
        self.asked: list[list[str]] = []

    def job(self, name: str, status: JobStatus = JobStatus.RUNNING) -> JobResult:
        self.jobs[name] = {"_id": name, "title": name, "status": int(status)}
        self.results[name] = StoredResult(value=pack_value(name.upper()), error="E: broken")
        return JobResult(dict(self.jobs[name]))

    def load_jobs(self, job_ids: Sequence[str]) -> list[dict[str, Any]]:
        self.asked.append(sorted(job_ids))
        if self.ends:
            name, status = self.ends.pop(0)
            self.jobs[name] |= {"status": int(status), "updated": f"{len(self.asked):04}"}
        return super().load_jobs(job_ids)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    set_backend(site)
    yield site
    set_backend(None)


OK = JobStatus.SUCCESS


def test_jobs_come_as_they_end(site: Site) -> None:
    a, b, c = (site.job(name) for name in "abc")
    site.ends = [("b", OK), ("c", JobStatus.ERROR), ("a", JobStatus.CANCELED)]
    assert [r.id for r in as_completed([a, b, c], timeout=20)] == ["b", "c", "a"]
    assert (a.status, b.status, c.status) == (JobStatus.CANCELED, OK, JobStatus.ERROR)
    assert site.asked == [["a", "b", "c"], ["a", "c"], ["a"]], "one question for all that are left"


def test_those_that_ended_together_come_in_the_order_of_their_ends(site: Site) -> None:
    results = [site.job(name, OK) for name in "abc"]
    for name, when in zip("abc", ("3", "1", "2"), strict=True):
        site.jobs[name]["updated"] = when
    assert [r.id for r in as_completed(results)] == ["b", "c", "a"]


def test_a_job_that_is_gone_is_over(site: Site) -> None:
    gone = site.job("a")
    del site.jobs["a"]
    assert list(as_completed([gone])) == [gone]
    with pytest.raises(GirderError):
        gather([gone])


def test_the_time_may_be_over(site: Site) -> None:
    results = [site.job("a", OK), site.job("b"), site.job("c")]
    with pytest.raises(TimeoutError, match=r"2 of 3 jobs have not ended after 0\.1 s, .* b\."):
        list(as_completed(results, timeout=0.1))


def test_a_thousand_jobs_that_end_at_once(site: Site) -> None:
    results = [site.job(f"j{n}", OK) for n in range(5000)]
    begun = time.thread_time()
    assert len(list(as_completed(results))) == 5000
    assert time.thread_time() - begun < 5
    assert len(site.asked) == 1


def test_values_come_in_the_order_of_the_jobs(site: Site) -> None:
    results = [site.job(name) for name in "abc"]
    site.ends = [("c", OK), ("a", OK), ("b", OK)]
    assert gather(results, timeout=20) == ["A", "B", "C"]


def test_one_job_may_be_there_twice(site: Site) -> None:
    a = site.job("a", OK)
    assert gather([a, a, JobResult("a")]) == ["A", "A", "A"]
    assert gather(a) == ["A"]
    assert gather([]) == []


def test_maps_and_groups_give_lists(site: Site) -> None:
    a, b, c = (site.job(name, OK) for name in "abc")
    mapped = MapResult({"_id": "p", "status": 1}, [a, b])
    assert gather(mapped) == ["A", "B"]
    assert gather([mapped, c, GroupResult([c, GroupResult([a])])]) == [
        ["A", "B"],
        "C",
        ["C", ["A"]],
    ]
    assert {r.id for r in as_completed([mapped, c])} == {"a", "b", "c"}
    assert gather(r for r in (a, b)) == ["A", "B"]


def test_the_first_failure_raises_at_once(site: Site) -> None:
    results = [site.job("a"), site.job("b"), site.job("c")]
    site.ends = [("b", JobStatus.ERROR)]
    with pytest.raises(JobFailed, match="broken"):
        gather(results, timeout=20)
    assert len(site.asked) == 1
    assert site.canceled == []


def test_failures_can_be_returned(site: Site) -> None:
    results = [site.job("a", OK), site.job("b", JobStatus.ERROR), site.job("c", JobStatus.CANCELED)]
    value, failed, canceled = gather(results, errors="return")
    assert value == "A"
    assert isinstance(failed, JobFailed)
    assert isinstance(canceled, JobCanceled)


def test_what_makes_no_sense(site: Site) -> None:
    with pytest.raises(ValueError, match="'raise' or 'return'"):
        gather([], errors="ignore")  # type: ignore[arg-type]
    for odd in ("abc", {"a": site.job("a")}):
        with pytest.raises(TypeError, match="Pass a list of JobResults"):
            gather(odd)


def test_a_bar_is_drawn_if_it_is_wanted(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    results = [site.job(name, OK) for name in "abc"]
    gather(results)
    assert capsys.readouterr().err == "", "nobody looks"
    gather(results, progress=True)
    assert "3/3" in capsys.readouterr().err


def test_an_interruption_leaves_the_jobs_alone(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [site.job("a", OK), site.job("b")]
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        until(lambda: len(site.asked) > 1)  # it waits, and the signal ends nothing else
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        gather(results, timeout=30)
    thread.join()
    assert "1 of 2 jobs continue. result.cancel() ends one." in capsys.readouterr().err
    assert site.canceled == []


def test_the_questions_become_rare(site: Site) -> None:
    with pytest.raises(TimeoutError):
        gather([site.job("a")], timeout=2)
    assert 2 < len(site.asked) < 20
