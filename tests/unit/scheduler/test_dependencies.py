"""Jobs start when the results that they depend on are there."""

from __future__ import annotations

from typing import Any

import pytest

from girder_dask.jobs import JobStatus
from girder_dask.protocol.messages import JobSpec
from tests.support.dispatch_site import Site

S = JobStatus


def answer(site: Site, **jobs: dict[str, Any]) -> list[str]:
    """Answer for Girder what the dispatcher wants to know; return what that was."""
    asked = site.dependencies.unknown()
    site.dispatcher.on_dependency_states(asked, {i: {"_id": i, **job} for i, job in jobs.items()})
    return asked


def submitted(site: Site) -> list[str]:
    return [site.cluster.specs[key].id for key in site.cluster.submitted]


# -- inputs that are in hand -----------------------------------------------------------------


def test_dependent_is_blocked_then_submitted_with_the_key(site: Site) -> None:
    a = site.accept("a")
    b = site.accept("b", dependencies=["a"])
    assert submitted(site) == ["a"]
    assert [e.id for e in site.events] == ["a", "b"], "Girder is told who has them"
    run = site.running(a)
    run.says(S.SUCCESS, result=b"r")
    assert submitted(site) == ["a"], "Dask does not say yet that the value is there"
    site.end(a, "w1")
    assert submitted(site) == ["a", "b"]
    assert site.cluster.values[b.key] == {"a": a.key}
    assert site.asked == 0
    assert a.key not in site.cluster.released
    site.succeed(b)
    assert site.cluster.released == [a.key, b.key] or site.cluster.released == [b.key, a.key]
    assert site.history("b") == [(1, S.RUNNING), (1, S.SUCCESS)]


def test_dependent_starts_when_the_run_reports_after_dask(site: Site) -> None:
    a = site.accept("a")
    b = site.accept("b", dependencies=["a"])
    run = site.running(a)
    site.end(a, "w1")
    assert submitted(site) == ["a"], "it may have been the end of a run that nobody hears"
    run.says(S.SUCCESS, result=b"r")
    assert site.cluster.values[b.key] == {"a": a.key}


def test_dependent_is_blocked_by_all_its_dependencies(site: Site) -> None:
    a, b = site.accept("a"), site.accept("b")
    c = site.accept("c", dependencies=["a", "b", "a"])
    site.succeed(b)
    assert "c" not in submitted(site)
    site.succeed(a)
    assert site.cluster.values[c.key] == {"a": a.key, "b": b.key}
    assert submitted(site).count("c") == 1
    site.succeed(c)
    assert sorted(site.cluster.released) == [a.key, b.key, c.key]


def test_dependents_may_be_accepted_before_their_dependencies(site: Site) -> None:
    c = JobSpec(id="c", attempt=1, task="m:count", dependencies=["b"])
    b = JobSpec(id="b", attempt=1, task="m:count", dependencies=["a"])
    a = JobSpec(id="a", attempt=1, task="m:count")
    site.dispatcher.accept([c, b, a])
    for spec in (a, b, c):
        assert submitted(site)[-1] == spec.id
        site.succeed(spec)
    assert site.asked == 0


def test_retry_of_a_dependent_gets_the_keys_too(site: Site) -> None:
    a = site.accept("a")
    b = site.accept("b", dependencies=["a"], retries=1)
    site.succeed(a)
    site.dispatcher.on_verdict("a", "done")
    site.running(b).says(S.ERROR, error="no")
    site.cluster.advance(1)
    assert site.cluster.values["count-b-2"] == {"a": a.key}
    assert a.key not in site.cluster.released
    site.succeed(site.again(b))
    assert a.key in site.cluster.released


# -- inputs that fail ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "how"), [(S.ERROR, "ended in ERROR"), (S.CANCELED, "was canceled")]
)
def test_failed_dependency_fails_its_dependents(site: Site, end: JobStatus, how: str) -> None:
    a = site.accept("a", title="Count coins")
    site.accept("b", dependencies=["a"], title="Sum", retries=3)
    site.accept("c", dependencies=["b"])
    site.running(a).says(end, error="no")
    reason = f"Input job a ('Count coins') {how}, so this job cannot run."
    assert site.history("b") == [(1, S.ERROR)]
    assert site.log("b") == reason + "\n"
    assert [e.error for e in site.events if e.id == "b" and e.error] == [reason]
    assert site.log("c") == "Input job b ('Sum') ended in ERROR, so this job cannot run.\n"
    assert submitted(site) == ["a"]


def test_failed_dependency_fails_a_long_chain_without_recursion(site: Site) -> None:
    site.accept("0")
    for n in range(1, 3000):
        site.accept(str(n), dependencies=[str(n - 1)])
    site.dispatcher.cancel(["0"])
    assert site.history("0") == [(1, S.CANCELED)]
    assert {e.status for e in site.events if e.status is not None} == {S.CANCELED, S.ERROR}
    assert site.history("2999") == [(1, S.ERROR)]


def test_dependent_accepted_after_the_failure_fails(site: Site) -> None:
    a = site.accept("a")
    site.running(a).says(S.ERROR, error="no")
    site.accept("b", dependencies=["a"])
    assert site.history("b") == [(1, S.ERROR)]


def test_blocked_job_is_canceled_at_once(site: Site) -> None:
    a = site.accept("a")
    site.accept("b", dependencies=["a"])
    site.dispatcher.cancel(["b"])
    assert site.history("b") == [(1, S.CANCELED)]
    site.succeed(a)
    assert submitted(site) == ["a"]
    assert a.key in site.cluster.released, "nobody needs it"


def test_failed_try_of_a_dependency_fails_no_dependent(site: Site) -> None:
    a = site.accept("a", retries=1)
    b = site.accept("b", dependencies=["a"])
    site.running(a).says(S.ERROR, error="no")
    assert site.history("b") == []
    site.cluster.advance(1)
    site.succeed(site.again(a))
    assert site.cluster.values[b.key] == {"a": "count-a-2"}


# -- inputs that are not in hand ---------------------------------------------------------------


def test_unknown_dependency_is_looked_up_in_girder(site: Site) -> None:
    b = site.accept("b", dependencies=["a"])
    assert (site.asked, submitted(site)) == (1, [])
    assert answer(site, a={"status": 2}) == ["a"]
    assert answer(site, a={"status": 3}) == ["a"]
    assert submitted(site) == ["b"]
    assert site.cluster.values[b.key] == {}, "the worker asks Girder for it"
    assert answer(site) == []


@pytest.mark.parametrize(
    ("job", "how"),
    [
        ({"status": 4, "title": "Count"}, "('Count') ended in ERROR"),
        ({"status": 5, "title": "Count"}, "('Count') was canceled"),
        (None, "no longer exists"),
    ],
)
def test_looked_up_failure_fails_the_dependent(
    site: Site, job: dict[str, Any] | None, how: str
) -> None:
    site.accept("b", dependencies=["a"])
    answer(site, **({} if job is None else {"a": job}))
    assert site.log("b") == f"Input job a {how}, so this job cannot run.\n"
    assert site.history("b") == [(1, S.ERROR)]


def test_dependency_accepted_during_the_lookup_is_not_deleted(site: Site) -> None:
    b = site.accept("b", dependencies=["a"])
    asked = site.dependencies.unknown()
    a = site.accept("a")
    site.dispatcher.on_dependency_states(asked, {})  # an answer from before it was recorded
    assert site.history("b") == []
    site.succeed(a)
    assert site.cluster.values[b.key] == {"a": a.key}


@pytest.mark.parametrize("kind", ["stale", "gone"])
def test_abandoned_dependency_is_looked_up_in_girder(site: Site, kind: str) -> None:
    site.accept("a")
    site.accept("b", dependencies=["a"])
    site.dispatcher.on_verdict("a", kind)
    assert site.asked == 1
    answer(site)
    assert site.history("b") == [(1, S.ERROR)]


def test_stored_result_unblocks_once_girder_acknowledged_it(site: Site) -> None:
    a = site.accept("a")
    site.succeed(a)
    assert site.cluster.released == [a.key]
    b = site.accept("b", dependencies=["a"])
    assert submitted(site) == ["a"], "Girder has not acknowledged it"
    site.dispatcher.on_verdict("a", "done")
    assert submitted(site) == ["a", "b"]
    assert site.cluster.values[b.key] == {}
    assert site.asked == 0


# -- large values --------------------------------------------------------------------------------


def test_retained_result_is_passed_to_later_dependents(site: Site) -> None:
    a = site.accept("a")
    site.succeed(a, stored=False)
    site.dispatcher.on_verdict("a", "done")
    assert site.cluster.released == []
    assert a.key in site.dispatcher, "what Dask does with it matters"
    site.cluster.advance(99)
    b = site.accept("b", dependencies=["a"])
    assert site.cluster.values[b.key] == {"a": a.key}
    site.cluster.advance(99)
    assert site.cluster.released == [], "a job that runs needs it"
    site.succeed(b)
    assert site.cluster.released == [a.key, b.key] or site.cluster.released == [b.key, a.key]


def test_released_result_does_not_block_dependents(site: Site) -> None:
    """The job that needs it runs, and says itself that the value cannot be had."""
    a = site.accept("a")
    site.succeed(a, stored=False)
    site.dispatcher.on_verdict("a", "done")
    site.cluster.advance(101)
    assert site.cluster.released == [a.key]
    b = site.accept("b", dependencies=["a"])
    answer(site, a={"status": 3})
    assert site.cluster.values[b.key] == {}


def test_lost_result_does_not_rerun_a_finished_dependency(site: Site) -> None:
    a = site.accept("a")
    b = site.accept("b", dependencies=["a"])
    site.succeed(a)
    site.dispatcher.on_forgotten(a.key)
    site.dispatcher.on_forgotten(b.key)
    assert submitted(site) == ["a", "b"]
    assert site.history("a") == [(1, S.RUNNING), (1, S.SUCCESS)]
    site.dispatcher.on_verdict("a", "done")
    assert site.cluster.submitted == [a.key, b.key, "count-b-2"]
    assert site.cluster.values["count-b-2"] == {}


def test_lost_result_reruns_a_dependency_with_no_reported_end(site: Site) -> None:
    a = site.accept("a")
    b = site.accept("b", dependencies=["a"])
    site.running(a)
    site.end(a, "w1")
    site.dispatcher.on_forgotten(a.key)
    again = site.again(a)
    assert again.key == "count-a-2"
    site.succeed(again)
    assert site.cluster.values[b.key] == {"a": again.key}


def test_new_attempt_of_a_dependency_replaces_the_old_one(site: Site) -> None:
    site.accept("a")
    b = site.accept("b", dependencies=["a"])
    new = site.accept("a", attempt=2)
    assert site.history("b") == []
    site.succeed(new)
    assert site.cluster.values[b.key] == {"a": new.key}


def test_graph_forgets_jobs_that_ended(site: Site) -> None:
    a = site.accept("a")
    b = site.accept("b", dependencies=["a", "x"])
    answer(site, x={"status": 3})
    site.succeed(a)
    site.succeed(b)
    for job in "ab":
        site.dispatcher.on_verdict(job, "done")
    graph = site.transitions._graph
    assert {**graph._dependencies, **graph._dependents, **graph._outcomes} == {}
    assert len(site.jobs) == len(site.retained) == 0
    assert site.cluster.next_time() is None


def test_key_of_is_known_while_the_result_is_available(site: Site) -> None:
    a = site.accept("a")
    assert site.dispatcher.key_of("a") == a.key
    assert site.dispatcher.key_of("unknown") is None
    site.succeed(a, stored=False)
    site.dispatcher.on_verdict("a", "done")
    assert site.dispatcher.key_of("a") == a.key
    b = site.accept("b")
    site.succeed(b)
    assert "b" in site.jobs
    assert site.dispatcher.key_of("b") is None, "Girder has it"
