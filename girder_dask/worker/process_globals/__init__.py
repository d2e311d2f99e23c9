"""State of a process that tasks may change: each job has its own, or it is restored."""

__all__: list[str] = []
