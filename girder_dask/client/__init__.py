"""Submitting jobs and watching them: from Girder, notebooks, scripts and running tasks."""

__all__: list[str] = []
