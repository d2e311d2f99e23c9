"""What travels between Girder, the scheduler, the workers and clients, as bytes."""

__all__: list[str] = []
