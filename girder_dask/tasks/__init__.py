"""Tasks: the decorator, options of calls, composition, the running job."""

__all__: list[str] = []
