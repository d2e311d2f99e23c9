"""Capture of what jobs print, log and warn about, each in a log of its own."""

__all__: list[str] = []
