"""Notifications to users' browsers."""

__all__: list[str] = []
