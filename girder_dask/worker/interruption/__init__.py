"""Interruption of threads of jobs, and waits that an interruption ends."""

__all__: list[str] = []
