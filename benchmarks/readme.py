"""Puts the table of goals into the README: ``python -m benchmarks.readme``."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.report import RESULTS, goals_table

__all__ = ["BEGIN", "END", "block", "main"]

README = Path(__file__).parents[1] / "README.md"
BEGIN = "<!-- benchmarks: begin, written by `make bench-readme` -->"
END = "<!-- benchmarks: end -->"


def block(directory: Path = RESULTS) -> str:
    """Return what stands between the marks: the goals, as they were last measured."""
    report = json.loads((directory / "latest.json").read_text())
    machine = report["machine"]
    taken = (
        f"Measured on {report['taken']}, on {machine['cores']} cores of an {machine['cpu']} with "
        f"{machine['memory_gib']} GiB, each system in turn in the same run."
    )
    return f"{BEGIN}\n\n{goals_table(report)}\n{taken}\n\n{END}"


def main() -> None:
    """Write the README anew."""
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{README.name} has no place that is marked for the table.")
    README.write_text(f"{before}{block()}{after}")


if __name__ == "__main__":
    main()
