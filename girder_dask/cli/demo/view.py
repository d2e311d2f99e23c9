"""The views of the demo: drawn live on a terminal, line by line elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from girder_dask.cli.demo.job import JobView
from girder_dask.jobs import JobStatus
from girder_dask.standalone.report import PlainReporter, Reporter, RichReporter

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

__all__ = ["DemoView", "LiveView", "PlainView", "view_for"]

_LOG_LINES = 12
_COLOURS = {JobStatus.SUCCESS: "green", JobStatus.ERROR: "red", JobStatus.CANCELED: "red"}


class DemoView:
    """Shows the demo. ``reporter`` shows the stack, ``note`` prints a line of text."""

    reporter: Reporter

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Show the job inside this context."""
        yield

    def show(self, job: JobView) -> None:
        """Show the current state of the job."""
        raise NotImplementedError

    def note(self, text: str) -> None:
        """Print a line of text."""
        self.reporter.note(text)


class PlainView(DemoView):
    """Prints a line for each state, each step of the progress and each line of the log."""

    def __init__(self, stream: TextIO) -> None:
        self.reporter = PlainReporter(stream)
        self._states = 0
        self._log = 0
        self._progress: tuple[float, float, str] = (0.0, 0.0, "")

    def show(self, job: JobView) -> None:
        states = job.states[self._states :]
        self._states += len(states)
        # The final state comes after progress and log.
        before = [s for s in states if not job.ended or s is not states[-1]]
        for state in before:
            self.note(f"{state.seconds:7.3f} s  {state.status.name}")
        self._show_progress(job)
        self._show_log(job)
        for state in states[len(before) :]:
            self.note(f"{state.seconds:7.3f} s  {state.status.name}")

    def _show_progress(self, job: JobView) -> None:
        progress = (job.current, job.total, job.message)
        if progress != self._progress and job.total:
            self._progress = progress
            self.note(f"           {job.current / job.total:4.0%} {job.message}")

    def _show_log(self, job: JobView) -> None:
        end = len(job.log) if job.ended else job.log.rfind("\n") + 1
        for line in job.log[self._log : end].splitlines():
            self.note(f"           | {line}")
        self._log = max(end, self._log)


class LiveView(DemoView):
    """Draws states, progress bar and log in place, ten times a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.reporter = RichReporter(console)
        self._live: Live | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        from rich.live import Live

        with Live(console=self._console, auto_refresh=False) as live:
            self._live = live
            yield
        self._live = None

    def show(self, job: JobView) -> None:
        if self._live is not None:
            self._live.update(_drawing(job), refresh=True)


def _drawing(job: JobView) -> RenderableType:
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    states = Table.grid(padding=(0, 2))
    for state in job.states:
        name = Text(state.status.name, style=_COLOURS.get(state.status, "cyan"))
        states.add_row(Text(f"{state.seconds:7.3f} s", style="dim"), name)
    progress = Table.grid(padding=(0, 2))
    bar = ProgressBar(
        total=job.total or 1,
        completed=job.current,
        width=40,
        complete_style="cyan",
        finished_style="green",
    )
    progress.add_row(bar, Text(f"{job.current:g}/{job.total:g}", style="dim"), Text(job.message))
    lines = job.log.splitlines()[-_LOG_LINES:]
    log = Text("\n".join(lines) or "…", style="default" if lines else "dim")
    return Panel(
        Group(states, Text(), progress, Text(), log),
        title=Text(f" {job.title} "),
        border_style=_COLOURS.get(job.status, "cyan"),
    )


def view_for(stream: TextIO) -> DemoView:
    """Return the view for a stream: drawn live on a terminal, plain lines elsewhere."""
    if stream.isatty():
        try:
            from rich.console import Console
        except ModuleNotFoundError:
            return PlainView(stream)
        return LiveView(Console(file=stream))
    return PlainView(stream)
