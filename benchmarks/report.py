"""The report of a run: ``latest.json``, and the same as tables in ``latest.md``."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.goals import GOALS

__all__ = [
    "MEASURED",
    "RESULTS",
    "about",
    "build",
    "goals_table",
    "latest",
    "medians_table",
    "tables",
    "updated",
    "write",
]

#: The directory of the published results.
RESULTS = Path(__file__).parent / "results"
#: The directory of new results, which Git ignores until they are published.
MEASURED = Path(__file__).parent / "measured"


def build(
    ratios: Mapping[str, float],
    failures: Mapping[str, str],
    results: list[dict[str, Any]],
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the report of a run, the content of ``latest.json``."""
    goals = {
        name: {
            "case": goal.case,
            "goal": str(goal),
            "measured": ratios[name],
            "met": goal.met(ratios[name]) and name not in failures,
            "failure": failures.get(name),
        }
        for name, goal in GOALS.items()
        if name in ratios
    }
    return {
        "taken": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "ratios": dict(ratios),
        "goals": goals,
        "machine": dict(machine),
        "settings": dict(settings),
        "results": results,
    }


def latest(directory: Path) -> dict[str, Any]:
    """Return the report in a directory, or the published one if there is none."""
    file = directory / "latest.json"
    found: dict[str, Any] = json.loads((file if file.exists() else RESULTS / file.name).read_text())
    return found


def updated(
    report: Mapping[str, Any], before: Mapping[str, Any], cases: Collection[str]
) -> dict[str, Any]:
    """Return a report with the results of the earlier one for all cases except ``cases``."""
    rest = [r for r in before["results"] if r["case"] not in cases]
    names = {r["case"] for r in rest}
    goals = {n: g for n, g in before["goals"].items() if n not in report["goals"]}
    return {
        **report,
        "ratios": {**{name: before["ratios"][name] for name in goals}, **report["ratios"]},
        "goals": {**goals, **report["goals"]},
        "results": [*report["results"], *rest],
        "before": {
            name: before.get("before", {}).get(name, before["taken"]) for name in sorted(names)
        },
    }


def write(report: Mapping[str, Any], directory: Path) -> None:
    """Write ``latest.json`` and ``latest.md``."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "latest.json").write_text(json.dumps(report, indent=1) + "\n")
    (directory / "latest.md").write_text(tables(report))


def tables(report: Mapping[str, Any]) -> str:
    """Return the goals, the medians and the machine as Markdown."""
    return "\n".join([goals_table(report), about(report), "", medians_table(report)])


def about(report: Mapping[str, Any]) -> str:
    """Return the sentences on when, where and with what the results were measured."""
    if not report["results"]:
        return "Nothing has been measured yet."
    machine = report["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    broker = machine["broker_of_girder_worker"]
    jobs = report["settings"]["jobs"]
    other = f" All cases had {jobs:,} jobs instead of the number in the table." if jobs else ""
    if before := report.get("before"):
        for day in sorted(set(before.values())):
            named = ", ".join(f"`{name}`" for name, taken in before.items() if taken == day)
            other += f" The cases {named} were measured in an earlier run, on {day}."
    return (
        f"Measured on {report['taken']} on {machine['cores']} cores ({machine['cpu']}) with "
        f"{machine['memory_gib']} GiB, {machine['os']}, Python {machine['python']}, with {packages}"
        f"{f' and {broker}' if broker else ''}; all systems in turn in the same run.{other}"
    )


def goals_table(report: Mapping[str, Any]) -> str:
    """Return a table of the goals. Those without a measurement are marked."""
    rows = []
    for name, goal in GOALS.items():
        found = report["goals"].get(name)
        measured = _number(found["measured"]) if found else "not measured"
        met = ("yes" if found["met"] else found["failure"] or "no") if found else ""
        rows.append((goal.case, str(goal), measured, met))
    return _table(("case", "goal", "measured", "met"), rows)


def medians_table(report: Mapping[str, Any]) -> str:
    """Return a table of the measured quantities, with the median over the rounds."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for r in report["results"]:
        key = (r["case"], r["system"], r["what"], r["unit"])
        groups.setdefault(key, []).append(r["value"])
    rows = [
        (case, system, what, f"{_number(statistics.median(values))} {unit}", _span(values))
        for (case, system, what, unit), values in groups.items()
    ]
    return _table(("case", "system", "what", "median", "rounds"), rows)


def _span(values: list[float]) -> str:
    if len(values) == 1:
        return "1"
    return f"{len(values)}: {_number(min(values))} to {_number(max(values))}"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float) -> str:
    """Return a number with three significant digits and without an exponent.

    >>> [_number(v) for v in (12345.6, 123.4, 1.2345, 0.012345, 0)]
    ['12,346', '123', '1.23', '0.0123', '0']
    """
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):.10g}"
