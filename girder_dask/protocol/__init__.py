"""Messages and values that Girder, the scheduler, workers and clients exchange."""

__all__: list[str] = []
