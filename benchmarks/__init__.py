"""Measurements of girder_dask beside girder_worker and beside Dask alone.

``python -m benchmarks`` runs them; docs/performance.md says how they are taken. All systems
are measured in the same run, in turn, since machines are noisy and differ.
"""
