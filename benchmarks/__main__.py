"""The benchmark runner: runs the given cases, by default all, and writes the results."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import machine, plots, report
from benchmarks.cases import CASES, Case, find
from benchmarks.measurement import SYSTEMS, Measurement
from benchmarks.stack import BenchmarkStack
from girder_dask.standalone.launcher import stopping_on_signals

__all__ = ["main", "parser"]

_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    made.add_argument("cases", nargs="*", metavar="CASE", help="a case or a ratio; default: all")
    made.add_argument("--list", action="store_true", help="list the cases and exit")
    made.add_argument("--rounds", type=_positive, help="number of rounds per case")
    made.add_argument("--jobs", type=_positive, help="size of each case, usually in jobs")
    made.add_argument(
        "--systems",
        type=_systems,
        default=SYSTEMS,
        help=f"systems to measure, separated by commas; default: {','.join(SYSTEMS)}",
    )
    made.add_argument(
        "--output", type=Path, default=report.MEASURED, help="directory for the results"
    )
    made.add_argument(
        "--update",
        action="store_true",
        help="keep the results in that directory of cases that are not measured in this run",
    )
    return made


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _systems(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = set(names) - set(SYSTEMS)
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown systems: {', '.join(sorted(unknown))}")
    return names


class Runner:
    """Runs cases on one stack. After a failed case, the next one gets a new stack."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.ratios: dict[str, float] = {}
        self.results: list[dict[str, Any]] = []
        self.failures: dict[str, str] = {}
        self.failed: list[str] = []
        self.broker: str | None = None
        self._options = options
        self._open = ExitStack()
        self._stack: BenchmarkStack | None = None

    def close(self) -> None:
        """Stop all processes."""
        self._stack = None
        self._open.close()

    def run(self, case: Case) -> None:
        """Run a case. A failure is printed, and the other cases still run."""
        rounds = self._options.rounds or case.rounds
        size = self._options.jobs or case.size
        print(f"{case.name}: {case.about} ({size:,} {case.unit}, rounds: {rounds})", flush=True)
        start = time.monotonic()
        try:
            measured = Measurement(case.name, self._ready(), self._options.systems, rounds, size)
            ratios = case.measure(measured)
            measured.stack.check()
        except Exception:  # noqa: BLE001 - whatever it is, the next case may work
            traceback.print_exc()
            self.failed.append(case.name)
            self.close()
            return
        self.broker = measured.stack.broker or self.broker
        self.results += measured.results
        self.failures |= measured.failures
        for name, value in ratios.items():
            if value is not None:
                self.ratios[name] = round(value, 4)
                print(f"  {name} = {value:.4g}")
        print(f"  ({time.monotonic() - start:.0f} s)", flush=True)

    def _ready(self) -> BenchmarkStack:
        if self._stack is None:
            name = tempfile.TemporaryDirectory(prefix="girder-dask-benchmarks-")
            directory = Path(self._open.enter_context(name))
            self._stack = self._open.enter_context(BenchmarkStack(directory / "stack"))
        return self._stack


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    made = parser()
    options = made.parse_args(arguments)
    if options.list:
        for case in CASES:
            print(f"{case.name:<12} {case.about}")
            for name in case.ratios:
                print(f"{'':<12}   ratio {name}")
        return 0
    try:
        chosen = dict.fromkeys(map(find, options.cases)) or CASES
    except KeyError as e:
        made.error(f"there is no case {e.args[0]!r}; --list shows all cases")
    runner = Runner(options)
    with stopping_on_signals():
        try:
            for case in chosen:
                runner.run(case)
        except KeyboardInterrupt:
            print("Interrupted; nothing was written.", file=sys.stderr)
            return _INTERRUPTED
        finally:
            runner.close()
    about = {**machine.describe(), "broker_of_girder_worker": runner.broker}
    settings = {name: getattr(options, name) for name in ("jobs", "rounds", "systems")}
    found = report.build(runner.ratios, runner.failures, runner.results, about, settings)
    if options.update:
        before = report.latest(options.output)
        found = report.updated(found, before, [case.name for case in chosen])
    report.write(found, options.output)
    plots.draw(found, options.output)
    print(f"\n{report.tables(found)}")
    if runner.failed:
        print(f"These cases failed: {', '.join(runner.failed)}.", file=sys.stderr)
    return 1 if runner.failed else 0


if __name__ == "__main__":
    sys.exit(main())
