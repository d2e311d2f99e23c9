"""The worker's side: runs jobs, captures their output, reports to the scheduler."""

__all__: list[str] = []
