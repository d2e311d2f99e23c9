"""What follows from the facts of the processes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from girder_dask.cli.doctor import Check, Facts, examine

VERSIONS = {"python": "3.11.7", "dask": "2026.8.0", "girder_dask": "0.1.0"}
TASKS = [{"module": "coins.tasks", "package": "coins 1.0", "error": None}]
WORKER = {
    "hostname": "node7",
    "versions": VERSIONS,
    "tasks": TASKS,
    "api_url": "http://girder/api/v1",
    "girder_error": None,
}
GIRDER = {
    "versions": VERSIONS,
    "tasks": TASKS,
    "scheduler": {"address": "tcp://s:8786", "reachable": True, "error": None},
}
SCHEDULER = {
    **WORKER,
    "requests": 3,
    "updates": 7,
    "waiting": 0,
    "error": None,
    "credential_error": None,
    "girder": GIRDER,
}


def whole(**changes: Any) -> Facts:
    """Return the facts of a system without a fault, but for ``changes``."""
    facts: dict[str, Any] = {
        "here": {"versions": VERSIONS},
        "scheduler_address": "tcp://s:8786",
        "scheduler": copy.deepcopy(SCHEDULER),
        "workers": {"tcp://w:1": copy.deepcopy(WORKER), "tcp://w:2": copy.deepcopy(WORKER)},
        "girder_url": "http://girder/api/v1",
    }
    return Facts(**{**facts, **changes})


def broken(facts: Facts) -> list[Check]:
    return [check for check in examine(facts) if not check.ok]


def test_examine_finds_no_broken_link_in_a_healthy_system() -> None:
    checks = list(examine(whole()))
    assert all(check.ok for check in checks)
    assert "The tasks of coins.tasks are on every worker" in [check.name for check in checks]
    assert all(check.remedy for check in checks), "each says how it would be mended"


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"girder_error": "refused"}, "Girder is reachable from here", "--api-url"),
        ({"scheduler_error": "refused"}, "The scheduler is reachable", "--scheduler"),
        ({"workers": {}}, "There are workers", "dask worker tcp://s:8786"),
        ({"workers": {"tcp://w:1": None}}, "Worker tcp://w:1 runs jobs", "Install girder_dask"),
    ],
)
def test_examine_names_a_broken_link_with_its_remedy(
    changes: dict[str, Any], name: str, said: str
) -> None:
    (check,) = broken(whole(**changes))
    assert check.name == name
    assert said in str(check.remedy)


def test_examine_names_a_scheduler_without_hooks() -> None:
    (check,) = broken(whole(scheduler=None))
    assert check.name == "The scheduler has our hooks"
    assert "--preload girder_dask.scheduler_hooks" in str(check.remedy)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("girder_error", "Girder is reachable from the scheduler, with its dask plugin"),
        ("credential_error", "The scheduler's credential is valid"),
        ("error", "Job updates reach Girder"),
        ("claim_error", "The scheduler gets its jobs from Girder"),
    ],
)
def test_examine_passes_on_the_errors_of_the_scheduler(field: str, name: str) -> None:
    facts = whole(scheduler={**SCHEDULER, field: "it says no"})
    assert [(check.name, check.problem) for check in broken(facts)] == [(name, "it says no")]


def test_examine_counts_quarantined_documents() -> None:
    aside = {"number": 3, "last": "The document of job 5f3c is malformed."}
    facts = whole(scheduler={**SCHEDULER, "girder": {**GIRDER, "set_aside": aside}})
    (check,) = broken(facts)
    assert check.name == "The documents of jobs in Girder are well-formed"
    assert "3 malformed ones" in str(check.problem)
    assert "job 5f3c" in str(check.problem)


def test_examine_names_a_scheduler_without_the_address_of_girder() -> None:
    (check,) = broken(whole(scheduler={**SCHEDULER, "api_url": None}))
    assert check.problem == "girder.api-url is not set there"


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ({"address": None, "reachable": None, "error": None}, "is empty"),
        ({"address": "tcp://x:1", "reachable": False, "error": "timed out"}, "timed out"),
    ],
)
def test_examine_names_a_girder_that_does_not_reach_the_scheduler(
    link: dict[str, Any], said: str
) -> None:
    facts = whole(scheduler={**SCHEDULER, "girder": {**GIRDER, "scheduler": link}})
    (check,) = broken(facts)
    assert check.name == "Girder reaches the scheduler"
    assert said in str(check.problem)


def test_examine_names_a_worker_without_a_cache() -> None:
    error = "The cache of input files is off: others may use /tmp/girder-dask-7. Set …"
    (check,) = broken(whole(workers={"tcp://w:1": {**WORKER, "cache_error": error}}))
    assert check.name == "Worker tcp://w:1 keeps input files"
    assert check.problem == error


def test_examine_names_the_processes_of_each_version() -> None:
    other = {**WORKER, "versions": {**VERSIONS, "dask": "2025.4.0"}}
    (check,) = broken(whole(workers={"tcp://w:1": WORKER, "tcp://w:2": other}))
    assert check.name == "The version of dask is the same everywhere"
    assert "2025.4.0 (worker tcp://w:2)" in str(check.problem)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([], "not installed on tcp://w:2"),
        (
            [{**TASKS[0], "error": "ImportError: x"}],
            "installed on tcp://w:2, but its import raises ImportError: x",
        ),
        ([{**TASKS[0], "package": "coins 0.9"}], "coins 0.9 on tcp://w:2"),
    ],
)
def test_examine_names_a_package_that_a_worker_lacks(tasks: list[Any], said: str) -> None:
    facts = whole(workers={"tcp://w:1": WORKER, "tcp://w:2": {**WORKER, "tasks": tasks}})
    (check,) = broken(facts)
    assert check.name == "The tasks of coins.tasks are on every worker"
    assert said in str(check.problem)


def test_examine_tells_an_import_error_from_a_missing_package() -> None:
    tasks = [{**TASKS[0], "error": "ValueError: no licence"}]
    (check,) = broken(whole(workers={"tcp://w:1": WORKER, "tcp://w:2": {**WORKER, "tasks": tasks}}))
    assert check.remedy == (
        "Fix its import: \"python -c 'import coins.tasks'\" in that environment shows the error."
    )


@pytest.mark.parametrize(
    ("days_left", "error", "said"),
    [
        (400.0, None, None),
        (13.2, None, "worker.pem expires in 13 days"),
        (-0.5, None, "worker.pem has expired"),
        (None, "The certificate worker.pem cannot be read: Permission denied.", "cannot be read"),
    ],
)
def test_examine_names_a_certificate_that_expires(
    days_left: float | None, error: str | None, said: str | None
) -> None:
    certificate = {
        "file": "worker.pem",
        "name": "worker",
        "not_after": "2027-01-02T03:04:05+00:00",
        "days_left": days_left,
        "error": error,
    }
    facts = whole(workers={"tcp://w:1": {**WORKER, "certificates": [certificate]}})
    names = [check.name for check in examine(facts) if "certificates" in check.name]
    assert names == ["The TLS certificates of worker tcp://w:1 are valid"]
    problems = [check.problem for check in broken(facts)]
    assert len(problems) == (said is not None)
    assert said is None or said in str(problems[0])
