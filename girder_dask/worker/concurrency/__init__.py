"""Child threads, subprocesses and forks of jobs."""

__all__: list[str] = []
