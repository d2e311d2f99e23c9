"""Propagation of a job into the threads, subprocesses and forks that it starts."""

__all__: list[str] = []
