"""Notifications to the browsers of users."""

__all__: list[str] = []
