"""The addresses of the schedulers of this Girder, one of which leads."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["SchedulerAddresses"]


class SchedulerAddresses:
    """The addresses of the setting, and the one that is used. Thread-safe.

    Parameters
    ----------
    read
        Returns the addresses. Called each time, so that a changed setting takes effect.

    Examples
    --------
    >>> addresses = SchedulerAddresses(lambda: ["tcp://a:8786", "tcp://b:8786"])
    >>> addresses.current()
    'tcp://a:8786'
    >>> addresses.try_next("tcp://a:8786"), addresses.current()
    (True, 'tcp://b:8786')
    >>> addresses.try_next("tcp://b:8786"), addresses.current()
    (False, 'tcp://a:8786')
    """

    def __init__(self, read: Callable[[], Sequence[str]]) -> None:
        self._read = read
        self._chosen: str | None = None

    def current(self) -> str | None:
        """Return the address to use, None if none is set."""
        addresses = self._read()
        if self._chosen in addresses:
            return self._chosen
        return addresses[0] if addresses else None

    def try_next(self, failed: str) -> bool:
        """Use the address after one that failed. Return False if that is the first one again."""
        addresses = self._read()
        if failed not in addresses or len(addresses) == 1:
            return False
        position = (addresses.index(failed) + 1) % len(addresses)
        self._chosen = addresses[position]
        return position != 0
