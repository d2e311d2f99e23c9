"""``girder serve`` with chosen plugins: ``python -m benchmarks.serve jobs,dask --port …``.

Girder loads every installed plugin. The plugins of both systems are installed here, and each
system is measured without the plugin of the other.
"""

from __future__ import annotations

import sys

import girder.plugin
from girder.cli.serve import main

names = sys.argv.pop(1).split(",")
found = girder.plugin._listPluginEntryPoints  # noqa: SLF001
girder.plugin._listPluginEntryPoints = lambda: [p for p in found() if p.name in names]  # noqa: SLF001
main()
