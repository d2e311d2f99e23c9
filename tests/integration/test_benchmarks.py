"""The harness of the benchmarks, with sizes too small for meaningful results."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import __main__ as command
from benchmarks import profiles, report
from benchmarks.cases import CASES
from benchmarks.goals import GOALS, SCALE_GOALS
from girder_dask.standalone import marked_processes

ROOT = Path(__file__).parents[2]
#: For each case that is tried here, what is measured of which systems.
TRIED = {
    "map": {
        ("girder_dask", "throughput", "jobs/s"),
        ("girder_dask", "requests to Girder", "requests/job"),
        ("dask", "throughput", "jobs/s"),
        *(("girder_dask", f"CPU time of {part}", "ms/job") for part in ("Girder", "MongoDB")),
        *(
            (system, f"CPU time of {part}", "ms/job")
            for system in ("girder_dask", "dask")
            for part in ("the scheduler", "the workers")
        ),
    },
    "latency": {("girder_dask", "latency", "ms")},
    "log_lines": {("girder_dask", "throughput", "lines/s")},
    "queue": {
        ("girder_dask", "throughput with 5 queued", "jobs/s"),
        ("girder_dask", "first 0 of 5 queued", "s"),
    },
    "workers": {
        (f"girder_dask with {count} workers", what, unit)
        for count in (5, 10)  # simulated
        for what, unit in (("throughput", "jobs/s"), ("CPU time of the scheduler", "ms/job"))
    },
    "sizes": {
        ("girder_dask", "throughput of map", "jobs/s"),
        ("girder_dask", "throughput of delay", "jobs/s"),
        ("dask", "throughput of map", "jobs/s"),
    },
}


def run(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def test_every_goal_is_measured_by_one_case():
    assert Counter(name for case in CASES for name in case.ratios) == Counter(list(GOALS))


def test_a_case_and_a_ratio_are_known_by_their_names(capsys: pytest.CaptureFixture[str]):
    assert command.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{case.name} " in shown for case in CASES)
    assert all(f"ratio {name}\n" in shown for name in GOALS)
    with pytest.raises(SystemExit):
        command.main(["coffee"])


@pytest.mark.timeout(600)
def test_what_a_run_leaves(tmp_path: Path):
    arguments = ["--systems", "girder_dask,dask", "--rounds", "1", "--jobs", "5"]
    process = run(*TRIED, *arguments, "--output", str(tmp_path))
    printed, _ = process.communicate(timeout=570)
    assert process.returncode == 0, printed
    found = json.loads((tmp_path / "latest.json").read_text())

    # The systems that were left out leave out their ratios.
    # So few jobs may take the scheduler less than the clock of its CPU time can tell.
    measured = {name: ratio for name, ratio in found["ratios"].items() if name != "workers_1000"}
    assert measured.keys() == {"map_vs_dask", "http_per_job", "queue_growth"}
    assert all(ratio > 0 for ratio in measured.values())
    for name, goal in found["goals"].items():
        assert goal["measured"] == found["ratios"][name]
        assert goal["met"] == GOALS[name].met(goal["measured"])
        assert goal["failure"] is None
    assert found["goals"].keys() == found["ratios"].keys()

    for case, wanted in TRIED.items():
        results = [r for r in found["results"] if r["case"] == case]
        assert {(r["system"], r["what"], r["unit"]) for r in results} == wanted
        assert {r["round"] for r in results} == {1}
        assert all(r["value"] >= 0 for r in results)
    assert [r["lost"] for r in found["results"] if r["case"] == "log_lines"] == [0]

    assert found["settings"] == {"jobs": 5, "rounds": 1, "systems": ["girder_dask", "dask"]}
    machine = found["machine"]
    assert machine["cores"] == os.cpu_count()
    assert machine["broker_of_girder_worker"] is None
    assert {"girder_dask", "dask", "distributed", "girder"} <= machine["packages"].keys()
    assert str(ROOT) not in json.dumps(found)
    assert os.uname().nodename not in json.dumps(machine)

    tables = (tmp_path / "latest.md").read_text()
    assert tables in printed
    assert all(str(goal) in tables for goal in GOALS.values())
    assert {path.name for path in tmp_path.iterdir()} == {
        "latest.json",
        "latest.md",
        "throughput.svg",
    }


def test_scale_measures_each_step(tmp_path: Path):
    command = [sys.executable, "-m", "benchmarks.scale", "--jobs", "1500"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "scale.json").read_text())
    assert found["goals"].keys() == SCALE_GOALS.keys()
    assert all(goal["measured"] >= 0 for goal in found["goals"].values())
    assert "jobs recorded by a map" in {result["what"] for result in found["results"]}
    assert (tmp_path / "scale-memory.svg").exists()
    assert str(ROOT) not in json.dumps(found)


def test_a_run_of_some_cases_keeps_what_there_is_of_others():
    def found(taken: str, case: str, ratio: str, value: float) -> dict[str, Any]:
        results = [{"case": case, "system": "s", "what": "w", "unit": "u", "value": value}]
        built = report.build({ratio: value}, {}, results, {}, {})
        return {**built, "taken": taken}

    before = found("2026-01-01", "map", "map_vs_dask", 0.5)
    now = found("2026-02-01", "submit", "submit_vs_girder_worker", 5.0)
    both = report.updated(now, before, ["submit"])
    assert both["ratios"] == {"map_vs_dask": 0.5, "submit_vs_girder_worker": 5.0}
    assert [both["goals"][name]["met"] for name in both["ratios"]] == [False, True]
    assert {r["case"] for r in both["results"]} == {"map", "submit"}
    assert both["before"] == {"map": "2026-01-01"}
    again = report.updated(found("2026-03-01", "map", "map_vs_dask", 0.7), both, ["map"])
    assert again["ratios"] == {"map_vs_dask": 0.7, "submit_vs_girder_worker": 5.0}
    assert [r["value"] for r in again["results"] if r["case"] == "map"] == [0.7]


def test_time_counts_for_the_innermost_module_of_ours_or_for_the_package():
    lines = [
        "MainThread;run (asyncio/events.py:607);hear (girder_dask/scheduler/dispatcher.py:9) 3",
        "MainThread;hear (/x/girder_dask/plugin/store/claims.py:9);insert (pymongo/cursor.py:1) 2",
        "MainThread;read (tornado/iostream.py:1);recv_into (ssl.py:1) 4",
        "MainThread;run (asyncio/base_events.py:607) 1",
        "MainThread;run (asyncio/base_events.py:607);select (selectors.py:468) 99",
    ]
    found = profiles.shares(lines)
    assert found == {
        "tornado": 0.4,
        "girder_dask.scheduler.dispatcher": 0.3,
        "girder_dask.plugin.store.claims": 0.2,
        "Python": 0.1,
    }
    table = profiles.tables({"the scheduler": found})
    assert table.startswith("| The scheduler: 50% in modules of girder_dask | |\n| --- | --- |\n")
    assert "| girder_dask.plugin.store.claims | 20.0% |" in table


def test_an_interrupt_stops_everything(tmp_path: Path):
    process = run(
        *("map", "--systems", "girder_dask", "--rounds", "1000", "--jobs", "5"),
        *("--output", str(tmp_path / "results")),
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    while "throughput" not in (line := process.stdout.readline()):
        assert line, "it has ended"
    (directory,) = tmp_path.glob("*/stack")
    parts = marked_processes.marked(str(directory))
    assert len(parts) >= 6
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert psutil.wait_procs(parts, timeout=60)[1] == []
    assert list(tmp_path.iterdir()) == []


def test_a_case_that_fails_is_shown_and_makes_the_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("GIRDER_MONGO_URI", "mongodb://127.0.0.1:9/girder")
    assert command.main(["map", "--output", str(tmp_path)]) == 1
    assert "These cases failed: map." in capsys.readouterr().err
    assert json.loads((tmp_path / "latest.json").read_text())["ratios"] == {}
