"""Job store in Girder's database: recording, claims, updates, results."""

__all__: list[str] = []
