"""The plugin's REST routes, and what they accept from whom."""

__all__: list[str] = []
