"""Cancellation of the jobs of large maps, by a thread of Girder."""

__all__: list[str] = []
