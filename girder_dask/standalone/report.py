"""Reporters: what a stack prints while it starts, runs and stops."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

__all__ = ["PlainReporter", "Reporter", "RichReporter", "reporter_for"]


class Reporter:
    """Callbacks for the events of a stack. This base class prints nothing."""

    def starting(self, part: str) -> None:
        """Report that a part was started."""

    def ready(self, part: str, seconds: float) -> None:
        """Report that a part works, ``seconds`` after its start."""

    def stopping(self, part: str) -> None:
        """Report that a part was asked to stop."""

    def stopped(self) -> None:
        """Report that everything has stopped."""

    def note(self, text: str) -> None:
        """Print another text for the user."""

    def failed(self, part: str, text: str) -> None:
        """Report that a part has ended. The text says how, and whether it is restarted."""


class PlainReporter(Reporter):
    """Prints one line per event."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout

    def starting(self, part: str) -> None:
        self._write(f"{part}: starting")

    def ready(self, part: str, seconds: float) -> None:
        self._write(f"{part}: ready in {seconds:.1f} s")

    def stopping(self, part: str) -> None:
        self._write(f"{part}: stopping")

    def stopped(self) -> None:
        self._write("stopped")

    def note(self, text: str) -> None:
        self._write(text)

    def failed(self, part: str, text: str) -> None:  # noqa: ARG002 - the text names it
        self._write(text)

    def _write(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class RichReporter(Reporter):
    """Shows a line for each part that is ready, and below the parts that are pending."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pending: list[str] = []
        self._status: Status | None = None

    def starting(self, part: str) -> None:
        self._pending.append(part)
        self._show("Starting")

    def ready(self, part: str, seconds: float) -> None:
        self._console.print(f"[green]✓[/] {part:<12} [dim]ready in {seconds:.1f} s[/]")
        if part in self._pending:
            self._pending.remove(part)
        self._show("Starting")

    def stopping(self, part: str) -> None:
        self._pending = [part]
        self._show("Stopping")

    def stopped(self) -> None:
        self._pending = []
        self._show("")
        self._console.print("[green]✓[/] all stopped")

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def failed(self, part: str, text: str) -> None:
        if part in self._pending:
            self._pending.remove(part)
            self._show("Starting")
        self._console.print("✗ " + text, style="red", highlight=False, markup=False)

    def _show(self, verb: str) -> None:
        if not self._pending:
            if self._status is not None:
                self._status.stop()
                self._status = None
            return
        text = f"{verb} {', '.join(self._pending)} …"
        if self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._status.update(text)


def reporter_for(stream: TextIO | None = None) -> Reporter:
    """Return the reporter for a stream: live on a terminal, plain elsewhere."""
    stream = stream or sys.stdout
    if stream.isatty():
        try:
            from rich.console import Console
        except ModuleNotFoundError:
            return PlainReporter(stream)
        return RichReporter(Console(file=stream))
    return PlainReporter(stream)
