"""Progress bar in terminals and notebooks.

It is tqdm's, a small package without dependencies that draws in both.
"""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["draw", "is_notebook", "is_visible"]


def is_visible() -> bool:
    """Return True if a bar is visible: standard error is a terminal, or this is a notebook."""
    return is_notebook() or bool(getattr(sys.stderr, "isatty", bool)())


def draw(total: float | None, message: str | None = None, *, show: bool | None = None) -> Any:
    """Return a bar with ``update(n)`` and ``close()``.

    Parameters
    ----------
    total
        The number of steps, None if unknown.
    message
        The text before the bar.
    show
        Whether the bar is drawn. None: if it would be visible.
    """
    show = is_visible() if show is None else show
    if show and _has_widgets():
        from tqdm.notebook import tqdm

        return tqdm(total=total, desc=message)
    from tqdm.std import tqdm as plain

    return plain(total=total, desc=message, disable=not show, dynamic_ncols=True)


def is_notebook() -> bool:
    """Return True if this process is a Jupyter kernel."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _has_widgets() -> bool:
    if not is_notebook():
        return False
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return False
    return True
