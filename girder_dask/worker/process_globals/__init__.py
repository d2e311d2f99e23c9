"""Process state that tasks may change: separate for each job, or restored after it."""

__all__: list[str] = []
