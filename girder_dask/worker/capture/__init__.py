"""Capture of the output, log records and warnings of jobs, each in its own log."""

__all__: list[str] = []
