"""Process-wide state that a task may change: given to each job alone, or restored."""

__all__: list[str] = []
