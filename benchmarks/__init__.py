"""Benchmarks that compare girder_dask with girder_worker and with Dask alone.

``python -m benchmarks`` runs them; docs/performance.md says how they are taken. All systems
are measured in the same run, in turn, since machines are noisy and differ.
"""
