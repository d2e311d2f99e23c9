"""Transforms of files: inputs, outputs, downloads, uploads and the cache of a host."""

__all__: list[str] = []
