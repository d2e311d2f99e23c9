"""Submission and observation of jobs from Girder, notebooks, scripts and running tasks."""

__all__: list[str] = []
