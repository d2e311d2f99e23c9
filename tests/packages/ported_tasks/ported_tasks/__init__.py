"""Tasks that run on girder_dask, and on girder_worker with other imports.

The integration test test_side_by_side.py changes the lines that import, as the page on
porting lists them, runs both, and compares the jobs.
"""
