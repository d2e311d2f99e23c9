"""One run of a job on a worker: its inputs, the call of its function, its result, its end."""

__all__: list[str] = []
