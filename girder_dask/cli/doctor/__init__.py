"""``girder-dask doctor``: checks of each link of the system, with remedies.

It first gathers facts from the scheduler, the workers, Girder and this process.
:func:`examine` derives the checks from the facts alone.
"""

from girder_dask.cli.doctor.checks import Check
from girder_dask.cli.doctor.examination import examine
from girder_dask.cli.doctor.facts import Facts, gather_facts
from girder_dask.cli.doctor.run import run_doctor

__all__ = ["Check", "Facts", "examine", "gather_facts", "run_doctor"]
