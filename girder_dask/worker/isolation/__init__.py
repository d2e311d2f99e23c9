"""Execution of tasks in processes of their own."""

__all__: list[str] = []
