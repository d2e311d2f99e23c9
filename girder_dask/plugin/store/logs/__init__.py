"""Logs of jobs, in job documents and in chunks outside them."""

__all__: list[str] = []
