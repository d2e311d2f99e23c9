"""Access to jobs: who sends a request, under which authority, and what new jobs may use."""

__all__: list[str] = []
