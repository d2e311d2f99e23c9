"""Requests to Girder and to other hosts: clients, retries, redirects, allowed addresses."""

__all__: list[str] = []
