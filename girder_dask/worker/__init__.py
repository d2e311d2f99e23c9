"""Worker processes: they run jobs, capture their output and report to the scheduler."""

__all__: list[str] = []
