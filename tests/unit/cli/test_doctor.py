"""What follows from the facts of the processes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from girder_dask.cli.doctor import Check, Facts, examine, gather_facts
from girder_dask.diagnostics import GirderAnswer

API = "http://girder/api/v1"
NOW = 1_700_000_000.0
GIB = 1024**3
VERSIONS = {"python": "3.11.7", "dask": "2026.8.0", "girder_dask": "0.1.0"}
TASKS = [{"module": "coins.tasks", "package": "coins 1.0", "error": None}]
DISK = {"path": "/data", "free": 50 * GIB, "total": 100 * GIB}
WORKER = {
    "hostname": "node7",
    "versions": VERSIONS,
    "tasks": TASKS,
    "api_url": API,
    "girder_error": None,
    "site": "ours",
    "time": NOW,
    "disks": [DISK],
    "cache_error": None,
    "no_directories": None,
}
GIRDER = {
    "versions": VERSIONS,
    "tasks": TASKS,
    "scheduler": {"address": "tcp://127.0.0.1:8786", "reachable": True, "error": None},
    "site": "ours",
    "time": NOW,
    "disks": [DISK],
    "has_assetstore": True,
    "redis_error": None,
    "set_aside": {"number": 0, "last": None},
}
SCHEDULER = {
    **WORKER,
    "requests": 3,
    "updates": 7,
    "waiting": 2,
    "error": None,
    "claim_error": None,
    "leads": True,
    "leader": "tcp://127.0.0.1:8786 on a",
    "credential_error": None,
    "credential_file_problem": None,
    "allow_insecure": False,
    "girder": GIRDER,
}


def whole(**changes: Any) -> Facts:
    """Return the facts of a system without a fault, but for ``changes``."""
    facts: dict[str, Any] = {
        "here": {"versions": VERSIONS},
        "scheduler_address": "tcp://127.0.0.1:8786",
        "listens_on": "tcp://127.0.0.1:8786",
        "scheduler": copy.deepcopy(SCHEDULER),
        "workers": {"tcp://w:1": copy.deepcopy(WORKER), "tcp://w:2": copy.deepcopy(WORKER)},
        "girder_url": API,
        "girder_answer": GirderAnswer(site="ours"),
        "asked": NOW - 1,
        "answered": NOW + 1,
    }
    return Facts(**{**facts, **changes})


def scheduler(**changes: Any) -> Facts:
    return whole(scheduler={**SCHEDULER, **changes})


def girder(**changes: Any) -> Facts:
    return scheduler(girder={**GIRDER, **changes})


def worker(**changes: Any) -> Facts:
    return whole(workers={"tcp://w:1": WORKER, "tcp://w:2": {**WORKER, **changes}})


def broken(facts: Facts) -> list[Check]:
    return [check for check in examine(facts) if not check.ok]


def test_examine_finds_no_broken_link_in_a_healthy_system() -> None:
    checks = list(examine(whole()))
    assert broken(whole()) == []
    names = [check.name for check in checks]
    assert "The tasks of coins.tasks are on every worker" in names
    assert len(set(names)) == len(names), "monitoring systems know them by name"
    assert all(check.name != check.failure for check in checks)


@pytest.mark.parametrize(
    ("found", "detail"),
    [
        ((0, 0), "no worker has one, and no job needs one"),
        ((1, 0), "Docker 20.10 on tcp://w:0; none on tcp://w:1"),
        ((1,) * 7, ", ".join(f"Docker 20.10 on tcp://w:{n}" for n in range(5)) + " and 2 more"),
    ],
)
def test_examine_says_which_workers_have_container_engines(
    found: tuple[int, ...], detail: str
) -> None:
    facts = engines(*(DOCKER if has else NO_ENGINE for has in found), jobs=0)
    assert broken(facts) == []
    names = {check.name: check.detail for check in examine(facts)}
    assert names["The workers have the container engines that jobs need"] == detail


NEEDS_ADDRESS = (
    "Set girder.api-url (DASK_GIRDER__API_URL) for the scheduler, or for the worker on node7 "
    "alone, to an address that the worker reaches. If neither is set, dask.api_url and "
    "core.server_root in Girder count."
)
SYNCHRONIZE = "Synchronize the clocks of these hosts with NTP. Times of jobs are wrong meanwhile."
FREE_SPACE = "Jobs fail when they cannot write. Free some space, or use another disk."
NO_ENGINE = {"name": None, "problem": "It looked for a socket.", "expected": False}
DOCKER = {"name": "Docker 20.10", "problem": None, "expected": False}
REPAIR_ENGINE = (
    "Repair that, or keep container jobs on the other workers: start those with --resources "
    "containers=THREADS, and the jobs with resources={'containers': 1} (tasks of girder_worker: "
    "with a queue)."
)


def engines(*found: dict[str, Any], jobs: int) -> Facts:
    return whole(
        workers={f"tcp://w:{n}": {**WORKER, "containers": its} for n, its in enumerate(found)},
        scheduler={**SCHEDULER, "girder": {**GIRDER, "container_jobs": jobs}},
    )


CASES = {
    "a worker without a container engine": (
        engines(DOCKER, NO_ENGINE, jobs=2),
        "Not all workers have a container engine",
        "2 unfinished jobs need one, and tcp://w:1 has none: It looked for a socket.",
        REPAIR_ENGINE,
    ),
    "no worker with a container engine": (
        engines(NO_ENGINE, NO_ENGINE, jobs=1),
        "Not all workers have a container engine",
        "1 unfinished job needs one, and tcp://w:0, tcp://w:1 have none: It looked for a socket.",
        REPAIR_ENGINE,
    ),
    "an engine that does not answer": (
        engines({**NO_ENGINE, "expected": True}, jobs=0),
        "The container engine of worker tcp://w:0 does not answer",
        "It looked for a socket.",
        (
            "Start the engine there, and let the account of the worker use it. Without "
            "containers, set girder.docker.engine to none."
        ),
    ),
    "Girder is away": (
        whole(girder_answer=GirderAnswer("it hangs")),
        "Girder is not reachable from here",
        "it hangs",
        "Start Girder, or give its address with --api-url http://HOST:PORT/api/v1.",
    ),
    "an untrusted certificate": (
        whole(girder_answer=GirderAnswer("untrusted. Set X.", is_certificate_refused=True)),
        "Girder is not reachable from here",
        "untrusted. Set X.",
        None,
    ),
    "no hooks": (
        whole(scheduler=None),
        "The scheduler does not have our hooks",
        "it does not know girder_dask, so jobs stay queued",
        "Start it with --preload girder_dask.scheduler_hooks.",
    ),
    "no TLS": (
        whole(listens_on="tcp://10.0.0.5:8786"),
        "Connections to the scheduler are not encrypted",
        "whoever reaches tcp://10.0.0.5:8786 can run code on the cluster",
        (
            "Use TLS between Dask's parts (distributed.comm.tls). In a closed network, set "
            "girder.security.allow-insecure on the scheduler."
        ),
    ),
    "the scheduler does not reach Girder": (
        scheduler(girder_error="it says no"),
        "Girder with its dask plugin is not reachable from the scheduler",
        "it says no",
        (
            "Set girder.api-url (DASK_GIRDER__API_URL) for the scheduler, and install "
            "girder_dask[girder] in Girder's environment."
        ),
    ),
    "no address of Girder": (
        scheduler(api_url=None),
        "Girder with its dask plugin is not reachable from the scheduler",
        "girder.api-url is not set there",
        (
            "Set girder.api-url (DASK_GIRDER__API_URL) for the scheduler, and install "
            "girder_dask[girder] in Girder's environment."
        ),
    ),
    "another Girder": (
        whole(girder_url="http://other/api/v1", girder_answer=GirderAnswer(site="theirs")),
        "This Girder is not that of the scheduler",
        (
            "the scheduler runs the jobs of the Girder at http://girder/api/v1, so those of "
            "http://other/api/v1 stay queued"
        ),
        (
            "Correct girder.api-url (DASK_GIRDER__API_URL) and the credential of the scheduler, or "
            "give the address of its Girder with --api-url."
        ),
    ),
    "the credential": (
        scheduler(credential_error="Invalid API key."),
        "The scheduler's credential is not valid",
        "Invalid API key.",
        (
            "Create one with 'girder-dask credential --output FILE' and set girder.credential-file "
            "on the scheduler's host."
        ),
    ),
    "the credential's file": (
        scheduler(credential_file_problem="/etc/dask/key has mode 644"),
        "Other accounts can read the scheduler's credential",
        "/etc/dask/key has mode 644",
        (
            "Run 'chmod 600 /etc/dask/key' on the scheduler's host. If other people use that host, "
            "replace the credential ('girder-dask credential --revoke-others')."
        ),
    ),
    "updates": (
        scheduler(error="500 to POST dask/job/updates"),
        "Job updates do not reach Girder",
        "500 to POST dask/job/updates",
        "Updates of 2 jobs wait and none is lost; look at Girder's log.",
    ),
    "claims": (
        scheduler(claim_error="500 to POST dask/job/claim"),
        "The scheduler does not get its jobs from Girder",
        "500 to POST dask/job/claim",
        "Queued jobs do not run meanwhile; look at Girder's log.",
    ),
    "a scheduler that stands by": (
        scheduler(leads=False, leader="tcp://other:8786 on b"),
        "The scheduler stands by",
        "the scheduler at tcp://other:8786 on b runs the jobs of this Girder",
        "If no other scheduler should run, stop that one. This one leads then.",
    ),
    "no address of the scheduler": (
        girder(scheduler={"address": None, "reachable": None, "error": None}),
        "Girder does not reach the scheduler",
        "Girder's setting dask.scheduler_address is empty",
        (
            "Set dask.scheduler_address in Girder to an address that it reaches "
            "(tcp://127.0.0.1:8786?)."
        ),
    ),
    "Girder's link": (
        girder(scheduler={"address": "tcp://x:1", "reachable": False, "error": "timed out"}),
        "Girder does not reach the scheduler",
        "timed out",
        (
            "Set dask.scheduler_address in Girder to an address that it reaches "
            "(tcp://127.0.0.1:8786?)."
        ),
    ),
    "malformed documents": (
        girder(set_aside={"number": 3, "last": "The document of job 5f3c is malformed."}),
        "Documents of jobs in Girder are malformed",
        (
            "3 malformed ones were quarantined in the last day. The last: The document of job 5f3c "
            "is malformed."
        ),
        (
            "These jobs were ended in ERROR; the others continue. Find out what writes such "
            "documents; Girder's log names each."
        ),
    ),
    "no assetstore": (
        girder(has_assetstore=False),
        "Girder has no assetstore",
        "jobs cannot store their outputs",
        "Create one in Girder's admin console, under Assetstores.",
    ),
    "Redis": (
        girder(redis_error="Error 111 connecting to r:6379. Connection refused."),
        "Girder's Redis does not answer",
        "Error 111 connecting to r:6379. Connection refused.",
        (
            "Jobs run all the same, but pages in browsers do not update by themselves. Start the "
            "Redis that GIRDER_NOTIFICATION_REDIS_URL names in Girder's environment."
        ),
    ),
    "no workers": (
        whole(workers={}),
        "There are no workers",
        "none has joined, so jobs stay queued",
        "Start one with 'dask worker tcp://127.0.0.1:8786'.",
    ),
    "a plain worker": (
        whole(workers={"tcp://w:1": WORKER, "tcp://w:2": None}),
        "Worker tcp://w:2 runs no jobs",
        "it does not know girder_dask",
        "Install girder_dask in its environment, then restart it.",
    ),
    "a worker that fails": (
        whole(
            workers={"tcp://w:1": WORKER, "tcp://w:2": None},
            worker_errors={"tcp://w:2": "OSError: full"},
        ),
        "Worker tcp://w:2 cannot be examined",
        "OSError: full",
        "Its log has the error.",
    ),
    "a worker without an address": (
        worker(api_url=None),
        "Worker tcp://w:2 does not reach Girder",
        "no setting has its address",
        NEEDS_ADDRESS,
    ),
    "a worker without the URL prefix": (
        worker(api_url="http://girder/girder/api/v1", girder_error="404 Not Found."),
        "Worker tcp://w:2 does not reach Girder",
        "404 Not Found. The path of its address is /girder/api/v1, and /api/v1 at the scheduler",
        NEEDS_ADDRESS,
    ),
    "a worker of another Girder": (
        worker(api_url="http://other/api/v1", site="theirs"),
        "Worker tcp://w:2 does not reach Girder",
        "the Girder at http://other/api/v1 is not that of the scheduler (http://girder/api/v1)",
        NEEDS_ADDRESS,
    ),
    "the cache": (
        worker(cache_error="The cache of input files is off. Set …"),
        "Worker tcp://w:2 does not keep input files",
        "The cache of input files is off. Set …",
        None,
    ),
    "tasks that are not installed": (
        worker(tasks=[]),
        "The tasks of coins.tasks are not on every worker",
        "not installed on tcp://w:2",
        "Install coins 1.0 in the environment of those workers, then restart them.",
    ),
    "tasks of another version": (
        worker(tasks=[{**TASKS[0], "package": "coins 0.9"}]),
        "The tasks of coins.tasks are not on every worker",
        "coins 0.9 on tcp://w:2, coins 1.0 elsewhere",
        "Install coins 1.0 in the environment of those workers, then restart them.",
    ),
    "tasks whose import raises": (
        worker(tasks=[{**TASKS[0], "error": "ImportError: libGL.so.1"}]),
        "The tasks of coins.tasks cannot be imported",
        "on tcp://w:2: ImportError: libGL.so.1",
        (
            "Correct the package or its environment: \"python -c 'import coins.tasks'\" there "
            "shows the whole error. Then restart the process."
        ),
    ),
    "tasks whose import raises in Girder": (
        girder(tasks=[{**TASKS[0], "error": "ValueError: no licence"}]),
        "The tasks of coins.tasks cannot be imported",
        "in Girder: ValueError: no licence",
        (
            "Correct the package or its environment: \"python -c 'import coins.tasks'\" there "
            "shows the whole error. Then restart the process."
        ),
    ),
    "a clock that is ahead": (
        girder(time=NOW + 61),
        "The clocks do not agree",
        "that of Girder is 60 s ahead of the one here",
        SYNCHRONIZE,
    ),
    "a clock that is behind": (
        worker(time=NOW - 8),
        "The clocks do not agree",
        "that of worker tcp://w:2 is 7 s behind the one here",
        SYNCHRONIZE,
    ),
    "a small disk": (
        girder(disks=[{**DISK, "free": GIB // 2}]),
        "A disk is nearly full",
        "/data of Girder has 0.5 of 100 GiB left",
        FREE_SPACE,
    ),
    "a large disk": (
        worker(disks=[{**DISK, "free": 4 * GIB}]),
        "A disk is nearly full",
        "/data of worker tcp://w:2 has 4.0 of 100 GiB left",
        FREE_SPACE,
    ),
    "an open HTTP server": (
        worker(http_addresses=["0.0.0.0:40123", "127.0.0.1:40124"]),
        "The HTTP server of worker tcp://w:2 is open to other hosts",
        "whoever reaches 0.0.0.0:40123 can read its /status and /metrics without a certificate",
        (
            "Start it with --dashboard-address 127.0.0.1:0. In a closed network, set "
            "girder.security.allow-insecure on the scheduler."
        ),
    ),
    "a version": (
        worker(versions={**VERSIONS, "dask": "2025.4.0"}),
        "The version of dask differs",
        "2026.8.0 (here, scheduler, Girder, worker tcp://w:1); 2025.4.0 (worker tcp://w:2)",
        "Install the same dask in each environment, then restart what runs another.",
    ),
}


@pytest.mark.parametrize(("facts", "failure", "problem", "remedy"), CASES.values(), ids=CASES)
def test_examine_says_what_is_wrong_and_what_to_do(
    facts: Facts, failure: str, problem: str, remedy: str | None
) -> None:
    (check,) = broken(facts)
    assert (check.failure, check.problem, check.remedy) == (failure, problem, remedy)


def test_examine_tells_of_a_shared_working_directory() -> None:
    facts = worker(no_directories="EPERM")
    assert broken(facts) == []
    details = {check.name: check.detail for check in examine(facts)}
    assert details["Jobs on worker tcp://w:2 share a working directory"] == (
        "its system refuses unshare(CLONE_FS) (EPERM). The directory is restored after each job. "
        "Allow the call in the seccomp profile of the container, or set girder.worker.isolation to "
        "process"
    )


def test_examine_goes_no_further_without_a_scheduler() -> None:
    (check,) = broken(whole(scheduler_error="refused"))
    assert (check.failure, check.problem) == ("The scheduler is not reachable", "refused")
    assert check.remedy == (
        "Start 'dask scheduler', or give its address with --scheduler tcp://HOST:PORT or "
        "tls://HOST:PORT. With TLS, Dask's configuration here needs the authority and a "
        "certificate (distributed.comm.tls)."
    )


def test_examine_says_nothing_of_tasks_without_workers() -> None:
    assert not any("tasks" in check.name for check in examine(whole(workers={})))


@pytest.mark.parametrize(
    "facts",
    [
        whole(listens_on="tls://10.0.0.5:8786"),
        whole(listens_on="tcp://localhost:8786"),
        whole(listens_on="tcp://10.0.0.5:8786", scheduler={**SCHEDULER, "allow_insecure": True}),
        worker(disks=[{**DISK, "free": 8 * GIB}]),
        worker(disks=[{**DISK, "free": 20 * GIB, "total": 1000 * GIB}]),
        worker(http_addresses=["127.0.0.1:40123", "[::1]:40123"]),
        whole(
            workers={"tcp://w:1": {**WORKER, "http_addresses": ["0.0.0.0:1"]}},
            scheduler={**SCHEDULER, "allow_insecure": True},
        ),
        worker(time=NOW + 5),
        worker(site=None),
    ],
)
def test_examine_accepts_what_is_right(facts: Facts) -> None:
    assert broken(facts) == []


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("nonsense", "missing port number in address 'nonsense'"),
        ("tcp://127.0.0.1:1", ""),  # refused or, on a busy machine, timed out
        ("xyz://127.0.0.1:1", "unknown address scheme 'xyz' (known schemes: "),
    ],
)
async def test_gather_facts_raises_for_no_address(address: str, problem: str) -> None:
    facts = await gather_facts("http://127.0.0.1:1/api/v1", address)
    assert facts.scheduler_error
    assert facts.scheduler_error.startswith(problem)
    assert facts.scheduler is None
    assert facts.girder_answer.error == (
        "Girder does not answer at http://127.0.0.1:1/api/v1 ([Errno 111] Connection refused)."
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


@pytest.mark.parametrize(("is_authority", "command"), [(True, "--authority "), (False, "")])
def test_examine_says_how_a_certificate_is_renewed(is_authority: bool, command: str) -> None:
    certificate = {"file": "x.pem", "not_after": "", "days_left": 3.0, "is_authority": is_authority}
    (check,) = broken(worker(certificates=[certificate, {**certificate, "days_left": 99.0}]))
    assert f"'girder-dask certs renew {command}DIRECTORY'" in check.remedy
    assert ("--authority" in check.remedy) is is_authority


@pytest.mark.parametrize(("days", "is_broken"), [(None, False), (90.0, False), (13.0, True)])
def test_examine_names_the_certificate_of_https_that_expires(
    days: float | None, is_broken: bool
) -> None:
    found = [check.problem for check in broken(whole(https_days_left=days))]
    assert found == (["it expires in 13 days"] if is_broken else [])
    assert any("https" in each.name for each in examine(whole(https_days_left=days))) is (
        days is not None
    )
