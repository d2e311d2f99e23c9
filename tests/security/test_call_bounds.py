"""Bounds of the options of calls: valid values for everyone, and limits for ordinary users."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from girder_dask.errors import SubmissionError
from girder_dask.plugin.rest import option_limits
from girder_dask.protocol.messages import MapParent
from tests.integration.test_permissions import configure, make_group
from tests.support.rest_site import call, count_jobs, submit

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def allowed(girder_admin: Any) -> Iterator[None]:
    configure(girder_admin, "dask.allow_tasks", value=True)
    yield
    for key in ("dask.allow_tasks", "dask.submitters", "dask.max_priority"):
        girder_admin.delete("system/setting", parameters={"key": key})


#: Values above the limits of users, and values just within them.
TOO_MUCH = [
    ("retries", option_limits.MAX_RETRIES + 1, option_limits.MAX_RETRIES),
    ("timeout", option_limits.MAX_TIMEOUT_S + 1, option_limits.MAX_TIMEOUT_S),
    ("priority", 1, 0),
    ("priority", option_limits.MIN_PRIORITY - 1, option_limits.MIN_PRIORITY),
    ("resources", {"GPU": 2e15}, {"GPU": option_limits.MAX_RESOURCE_AMOUNT}),
    (
        "resources",
        {f"r{n}": 1 for n in range(option_limits.MAX_RESOURCES + 1)},
        {f"r{n}": 1 for n in range(option_limits.MAX_RESOURCES)},
    ),
    (
        "resources",
        {"x" * (option_limits.MAX_RESOURCE_NAME_CHARS + 1): 1},
        {"x" * option_limits.MAX_RESOURCE_NAME_CHARS: 1},
    ),
    ("resources", {"queue:local": 1}, {"queue:elsewhere": 1}),
    ("title", "x" * (option_limits.MAX_TITLE_CHARS + 1), "x" * option_limits.MAX_TITLE_CHARS),
    ("type", "x" * (option_limits.MAX_TYPE_CHARS + 1), "x" * option_limits.MAX_TYPE_CHARS),
    ("handler", "worker_handler", "dask_handler"),
    ("other_fields", {"colour": "blue"}, {"meta": {"colour": "blue"}}),
]
#: Values that are invalid for everyone.
SENSELESS = [
    *(("retries", value) for value in (-1, 1.5, True, 10**400, "1", 2**31, None)),
    *(("timeout", value) for value in (0, -1, NAN, INF, -INF, 10**400, "1", True, 2**31)),
    *(("priority", value) for value in (0.5, NAN, True, 2**31, -(2**31), 10**400, "1", None)),
    *(("resources", {"GPU": value}) for value in (0, -1, NAN, INF, 10**400, "1", True, None)),
    *(("resources", value) for value in (5, [1], "GPU", {"": 1}, {" ": 1}, {"a\0b": 1})),
    *(("isolation", value) for value in ("fork", 5)),
    *(("at_most_once", value) for value in (1, "yes", None)),
]


def case(value: Any) -> str:
    return str(value)[:30]


@pytest.mark.parametrize(("name", "most", "fits"), TOO_MUCH, ids=case)
def test_users_ask_for_so_much_and_no_more(girder_stack, girder_user, name, most, fits):
    made = call("my_worker_tasks:noop", resources={"nowhere": 1})
    before = girder_stack.call(count_jobs, girder_user.id)
    refused = submit(girder_stack, {**made, name: most}, by=girder_user)
    assert refused.status_code == 403
    assert f"its {name}" in refused.json()["message"]
    assert "site administrators" in refused.json()["message"]
    assert girder_stack.call(count_jobs, girder_user.id) == before
    taken = submit(girder_stack, {**made, name: fits}, by=girder_user)
    assert taken.status_code == 200, taken.text
    girder_user.client.put(f"job/{taken.json()['jobs'][0]['_id']}/cancel")


def test_those_who_may_run_code_ask_for_what_they_like(girder_stack, girder_user, girder_admin):
    group = make_group(girder_admin, girder_user)
    configure(girder_admin, "dask.submitters", group["_id"])
    much = call(
        "my_worker_tasks:noop",
        retries=1000,
        timeout=1e8,
        priority=10,
        resources={"nowhere": 1e18},
        other_fields={"colour": "blue"},
    )
    taken = submit(girder_stack, much, by=girder_user)
    assert taken.status_code == 200, taken.text
    girder_user.client.put(f"job/{taken.json()['jobs'][0]['_id']}/cancel")


def test_a_setting_lets_users_be_more_urgent(girder_stack, girder_user, girder_admin):
    configure(girder_admin, "dask.max_priority", value=5)
    waits = {"resources": {"nowhere": 1}}
    taken = submit(girder_stack, call("my_worker_tasks:noop", priority=5, **waits), by=girder_user)
    assert taken.status_code == 200, taken.text
    girder_user.client.put(f"job/{taken.json()['jobs'][0]['_id']}/cancel")
    refused = submit(girder_stack, call("my_worker_tasks:noop", priority=6), by=girder_user)
    assert "its priority is 6, more than the 5" in refused.json()["message"]
    assert "dask.max_priority" in refused.json()["message"]


def test_the_parent_of_a_map_has_the_same_bounds(girder_stack, girder_user):
    for field, value in (("title", "x" * 1001), ("handler", "x"), ("other_fields", {"a": 1})):
        group = {**MapParent("Many").to_wire(), field: value}
        refused = submit(girder_stack, call("my_worker_tasks:noop"), group=group, by=girder_user)
        assert refused.status_code == 403
        assert f"its {field}" in refused.json()["message"]
    assert girder_stack.call(count_jobs, girder_user.id) == 0


def test_fields_of_a_newer_release_are_refused_by_their_names(girder_stack, girder_user):
    group = {**MapParent("Many").to_wire(), "pace": 5}
    newer = {**call("my_worker_tasks:noop"), "until": 5, "version": 1}
    for answer, what in (
        (submit(girder_stack, newer, by=girder_user), "Submission 1"),
        (submit(girder_stack, call(), group=group, by=girder_user), "The group"),
    ):
        assert answer.status_code == 400
        told = f"{what} has fields that this Girder does not know: "
        assert answer.json()["message"].startswith(told)
        assert "upgrade girder_dask in Girder" in answer.json()["message"]
    assert girder_stack.call(count_jobs, girder_user.id) == 0


@pytest.mark.parametrize("by", ["user", "admin"])
def test_what_makes_no_sense_is_refused_by_its_name(girder_stack, girder_user, girder_admin, by):
    """One test covers all cases, since each is a request."""
    who = girder_user if by == "user" else girder_admin
    answers = {}
    for name, value in SENSELESS:
        body = {"submissions": [{**call("my_worker_tasks:noop"), name: value}], "group": None}
        token = getattr(who, "client", who).token
        # As text: requests writes no NaN, as JSON has none, but whoever attacks does.
        text = json.dumps(body)
        told = "JSON has no number" if "NaN" in text or "Infinity" in text else f"`$.{name}"
        answers[f"{name}={value!r:.40}"] = post(girder_stack, text, token), told
    wrong = {
        case: answer.text
        for case, (answer, told) in answers.items()
        if answer.status_code != 400 or told not in answer.json()["message"]
    }
    assert wrong == {}


def test_a_call_that_runs_once_is_not_tried_again(girder_stack, girder_admin):
    once = call("my_worker_tasks:noop", at_most_once=True, retries=1)
    refused = submit(girder_stack, once, by=girder_admin)
    assert refused.status_code == 400
    assert "at_most_once" in refused.json()["message"]
    assert "`$.retries`" in refused.json()["message"]


def post(stack: Any, text: str, token: str) -> Any:
    import requests

    return requests.post(
        f"{stack.api}/dask/job",
        data=text,
        headers={"Girder-Token": token, "Content-Type": "application/json"},
        timeout=30,
    )


def test_delay_refuses_the_same_in_girder(girder_stack):
    def refused(options: list[tuple[str, Any]]) -> dict[str, str]:
        from my_worker_tasks import noop

        from girder_dask.errors import SubmissionError

        said = {}
        for name, value in options:
            try:
                noop.apply_async(**{name: value})
            except SubmissionError as e:
                said[f"{name}={value!r:.40}"] = str(e)
        return said

    options = [each for each in SENSELESS if each[0] != "at_most_once"]
    said = girder_stack.call(refused, options)
    assert len(said) == len(options)
    for each, text in said.items():
        name = each.partition("=")[0].removesuffix("s")
        assert name in text, each
        assert "No job was created" in text


@pytest.mark.parametrize("value", [0, -1, NAN, INF, 10**400], ids=case)
def test_a_job_that_would_wait_for_ever_is_refused_in_delay(value):
    from my_worker_tasks import noop

    from girder_dask.client.backend import use_backend
    from tests.support.recording_backend import RecordingBackend

    with (
        use_backend(RecordingBackend()),
        pytest.raises(
            SubmissionError,
            match=r"resources=\{'n': .*\}?: (Expected `float`|Number out).*No job was",
        ),
    ):
        noop.apply_async(resources={"n": value})
