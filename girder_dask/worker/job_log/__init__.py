"""The log of one job: a bounded buffer, its writers, and its pipe for subprocesses."""

__all__: list[str] = []
