"""Parent jobs of ``task.map``, and the counts of their children."""

__all__: list[str] = []
