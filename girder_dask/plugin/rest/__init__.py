"""The plugin's REST routes, their authorization and their validation."""

__all__: list[str] = []
