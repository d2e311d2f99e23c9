"""The logs of jobs, in job documents and in chunks beside them."""

__all__: list[str] = []
