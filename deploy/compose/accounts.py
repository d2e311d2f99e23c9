"""The service ``accounts``: the first administrator, the assetstore and the scheduler's credential.

It does nothing if the scheduler has a credential that Girder accepts.
"""

import json
import sys
from pathlib import Path

from girder_dask import credential
from girder_dask.errors import GirderDaskError, GirderError
from girder_dask.standalone import accounts

API = "http://girder:8080/api/v1"
CREDENTIAL = Path("/etc/girder_dask/scheduler/girder.credential")
ADMINISTRATOR = Path("/etc/girder_dask/admin/administrator.json")
# On Girder's host.
ASSETSTORE = Path("/var/lib/girder_dask/girder/assetstore")


def main() -> None:
    """Create what is missing."""
    if is_accepted():
        print("The scheduler's credential is accepted.")
        return
    state = json.loads(ADMINISTRATOR.read_text()) if ADMINISTRATOR.exists() else {}
    client = accounts.ensure_administrator(API, state)
    credential.write(ADMINISTRATOR, json.dumps(state))
    accounts.ensure_assetstore(client, ASSETSTORE)
    accounts.ensure_credential(API, client, CREDENTIAL)
    print(f"The scheduler has a credential. The administrator's login is in {ADMINISTRATOR}.")


def is_accepted() -> bool:
    """Return True if Girder accepts the scheduler's credential."""
    if not CREDENTIAL.exists():
        return False
    try:
        credential.connect(API, api_key=CREDENTIAL.read_text().strip())
    except GirderError as e:
        if e.status is None:
            raise
        return False
    return True


if __name__ == "__main__":
    try:
        main()
    except GirderDaskError as e:
        sys.exit(f"Error: {e}")
