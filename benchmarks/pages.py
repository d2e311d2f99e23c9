"""Publication of the last measurements: ``python -m benchmarks.pages``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import profiles
from benchmarks.report import MEASURED, RESULTS, about, goals_table, medians_table

__all__ = ["PAGES", "filled", "main"]

ROOT = Path(__file__).parents[1]
_BEGIN = "<!-- measured: begin, written by `make figures` -->"
_END = "<!-- measured: end -->"
_CAPTIONS = {
    "throughput": (
        "Throughput by number of jobs. girder_worker and `delay()` loops are measured up to 5,000 "
        "jobs, which take girder_worker two minutes."
    ),
    "latency": "Latency of a job by load: jobs start at random times, at a given mean rate.",
    "memory": "Resident memory of each process during the long run.",
}
_PROFILED = (
    "Share of the time in which a process holds the GIL, by module of girder_dask or by other "
    "package (`make profile`):"
)


def _short(report: Mapping[str, Any]) -> str:
    return f"{goals_table(report)}\n{about(report)}"


def _long(report: Mapping[str, Any]) -> str:
    pictures = [
        f"![{caption}](../{RESULTS.relative_to(ROOT)}/{name}.svg)\n\n{caption}\n"
        for name, caption in _CAPTIONS.items()
        if (RESULTS / f"{name}.svg").exists()
    ]
    shown = [_short(report), "", *pictures, medians_table(report)]
    if profiles.FILE.exists():
        shown += ["", _PROFILED, "", profiles.tables(json.loads(profiles.FILE.read_text()))]
    return "\n".join(shown).rstrip()


#: The function that returns the text between the marks, by page.
PAGES = {ROOT / "README.md": _short, ROOT / "docs" / "performance.md": _long}


def filled(page: Path) -> str:
    """Return a page with the last measurements between its marks.

    Raises
    ------
    ValueError
        If it has no such marks.
    """
    report = json.loads((RESULTS / "latest.json").read_text())
    before, begin, rest = page.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{page.name} does not have the two marks around the measurements.")
    return f"{before}{_BEGIN}\n\n{PAGES[page](report)}\n\n{_END}{after}"


def main() -> None:
    """Move new measurements to the published results, and update the pages."""
    if MEASURED.exists():
        for file in MEASURED.iterdir():
            shutil.move(file, RESULTS / file.name)
    for page in PAGES:
        page.write_text(filled(page))


if __name__ == "__main__":
    main()
