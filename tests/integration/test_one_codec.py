"""A call takes the same values in Girder, from a notebook and in a task; each is said alike."""

from __future__ import annotations

import builtins
import types
from typing import Any

import pytest

from girder_dask import JobResult, connect
from girder_dask.jobs import JobStatus
from tests.support.rest_site import ask, start_waiting, without_claims

DAY = "2026-01-02T03:00:00+00:00"


def attempt() -> dict[str, Any]:
    """Start jobs with unusual values; return their ids, and what was said of those refused."""
    import datetime as dt

    from my_worker_tasks import my_task

    from girder_dask.errors import SubmissionError

    day = dt.datetime(2026, 1, 2, 3, tzinfo=dt.timezone.utc)
    fields = {"meta": {"when": day, "sizes": (1, 2.5), "odd": {"b64": "x"}}}
    circle: list[Any] = []
    circle.append(circle)
    said = []
    for args, options in (
        ((1,), {"girder_job_other_fields": {"meta": {"n": [0, float("nan")]}}}),
        ((1,), {"girder_job_other_fields": {"meta": {"n": {1}}}}),
        ((2, circle), {}),
    ):
        try:
            my_task.delay(*args, **options)
        except SubmissionError as e:
            said.append(str(e))
    shown = my_task.delay(float("nan"), [float("inf")], day, day.date())
    return {
        "said": said,
        "ids": [str(my_task.delay(1, girder_job_other_fields=fields).id), shown.id],
    }


@pytest.fixture(params=["girder", "notebook", "task"])
def place(request: pytest.FixtureRequest, girder_stack: Any, girder_admin: Any) -> dict[str, Any]:
    """Return what the attempt makes in each of the three places."""
    if request.param == "girder":
        return dict(girder_stack.call(attempt, user=girder_admin))
    with connect(girder_stack.girder, token=girder_admin.token):
        if request.param == "notebook":
            return attempt()
        from girder_dask import task

        # A copy that is of no module travels by value, as a function of a notebook does.
        shipped = types.FunctionType(attempt.__code__, {"__builtins__": builtins, "Any": Any})
        shipped.__module__ = "__main__"
        return dict(task(shipped).delay().get(timeout=60))


def test_values_are_taken_or_refused_alike(
    place: dict[str, Any], girder_stack: Any, girder_admin: Any
) -> None:
    nan, kind, circle = place["said"]
    assert "girder_job_other_fields['meta']['n'][1] is nan" in nan
    assert "girder_job_other_fields['meta']['n'] is of type builtins.set" in kind
    assert "Argument 2 of my_worker_tasks" in circle
    assert "contains itself" in circle
    job, shown = (girder_admin.get(f"job/{i}") for i in place["ids"])
    assert job["meta"] == {"when": DAY, "sizes": [1, 2.5], "odd": {"b64": "x"}}
    assert shown["args"] == ["nan", ["inf"], DAY, "2026-01-02"]
    assert ask(girder_stack, "GET", "job/all", by=girder_admin).status_code == 200
    for job_id in place["ids"]:
        assert girder_stack.wait(job_id)["status"] == JobStatus.SUCCESS


@pytest.mark.parametrize("field", ["progressTotal", "progressCurrent"])
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e400"])
def test_an_update_of_a_job_holds_no_number_that_json_has_not(
    girder_stack: Any, girder_user: Any, field: str, number: str
) -> None:
    params = {field: number, "progressMessage": "x", "log": "not written"}
    with without_claims(girder_stack):
        job = girder_stack.call(start_waiting, user=girder_user)
        answer = ask(girder_stack, "PUT", f"job/{job['id']}", by=girder_user, params=params)
        kept = girder_stack.job(job["id"])
    assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert (kept["progress"], kept.get("log") or []) == (None, [])
    for path in ("job/all", f"job?userId={girder_user.id}"):
        assert ask(girder_stack, "GET", path, by=girder_stack.admin).status_code == 200, path


def test_a_plugin_that_updates_a_job_is_told_which_number_json_has_not(girder_stack: Any) -> None:
    job = girder_stack.call(start_waiting)
    with pytest.raises(
        Exception, match=r"otherFields\['meta'\]\['n'\]\[1\] is not a finite number"
    ):
        girder_stack.call(update, job["id"], {"meta": {"n": [1, float("nan")]}})
    assert girder_stack.call(update, job["id"], {"meta": {"n": [1, 2.5]}}) == {"n": [1, 2.5]}


def update(job_id: str, fields: dict[str, Any]) -> Any:
    """Update a job. Run it in Girder."""
    from girder_jobs.models.job import Job

    return Job().updateJob(Job().load(job_id, force=True), otherFields=fields)["meta"]


def test_a_value_that_cannot_be_pickled_is_not_available(girder_stack: Any) -> None:
    from girder_dask import task
    from girder_dask.errors import ResultUnavailable

    def make_lock() -> Any:
        import threading

        return threading.Lock()

    with connect(
        girder_stack.girder, token=girder_stack.admin.token, scheduler=girder_stack.scheduler
    ):
        result = task(make_lock).delay()
        with pytest.raises(ResultUnavailable, match="cannot be pickled"):
            result.get(timeout=60)
        with pytest.raises(ResultUnavailable, match="cannot be pickled"):
            JobResult(result.id).get(timeout=60)


def test_a_future_is_there_right_after_delay(girder_stack: Any) -> None:
    from my_worker_tasks import add_one

    with connect(
        girder_stack.girder, token=girder_stack.admin.token, scheduler=girder_stack.scheduler
    ):
        results = [add_one.delay(n) for n in range(30)]
        for n, result in enumerate(results):
            # A new object holds nothing yet: the scheduler is asked at any time of the job's life.
            assert JobResult(result.id).future.result(timeout=30) == n + 1
