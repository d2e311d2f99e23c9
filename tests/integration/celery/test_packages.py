"""large_image, import-tracker and Girder's own tasks on Dask, as PyPI has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import skimage
from bson import ObjectId

from girder_dask.jobs import JobStatus
from girder_dask.testing.stack import User
from tests.support.celery_site import wait_until
from tests.support.package_site import PackageSite

_IMAGE = Path(skimage.__file__).parent / "data" / "ihc.png"


@pytest.fixture(scope="module")
def local_site(package_site: PackageSite) -> Iterator[PackageSite]:
    """The stack with a worker for the queue ``local``."""
    with package_site.local_worker():
        yield package_site


def test_large_image_makes_tiles_of_an_image(package_site: PackageSite) -> None:
    package_site.require("girder_large_image")
    setting = {"key": "large_image.auto_set", "value": "false"}
    package_site.admin.put("system/setting", parameters=setting)
    user = package_site.create_user()
    file = package_site.upload(_IMAGE, client=user.client)
    tiles = f"item/{file['itemId']}/tiles"
    job = user.client.post(tiles, parameters={"force": True, "localJob": False, "notify": False})
    done = package_site.wait(job["_id"], timeout=90, status=JobStatus.SUCCESS)
    assert done["title"] == "Large Image Conversion: ihc.png"
    assert done["handler"] == "dask_handler"
    item = wait_until(lambda: _converted(user, file["itemId"]))
    assert item["largeImage"]["fileId"] != file["_id"]
    metadata = user.client.get(tiles)
    assert (metadata["sizeX"], metadata["sizeY"], metadata["tileWidth"]) == (512, 512, 256)
    tile = user.client.get(f"{tiles}/zxy/1/1/1", jsonResp=False)
    assert tile.headers["Content-Type"] == "image/jpeg"
    assert tile.content.startswith(b"\xff\xd8\xff")
    assert package_site.tokens_of(job["_id"]) == []


def _converted(user: User, item_id: str) -> dict[str, Any] | None:
    item = user.client.getItem(item_id)
    return None if item["largeImage"].get("expected") else dict(item)


def _job_of(site: PackageSite, title: str) -> str:
    """Return the newest job with a title, once there is one."""
    return str(wait_until(lambda: site.documents("job", {"title": title}))[-1]["_id"])


def test_import_tracker_moves_a_folder_to_another_assetstore(
    local_site: PackageSite, tmp_path: Path
) -> None:
    local_site.require("girder_import_tracker")
    user = local_site.create_user()
    folder = user.client.createFolder(user.folder["_id"], "to move")
    file = local_site.upload(b"moved\n", "file", client=user.client, folder=folder["_id"])
    parameters = {"name": f"of {user.login}", "type": 0, "root": str(tmp_path / "store")}
    store = local_site.admin.post("assetstore", parameters=parameters)
    chosen = {"assetstoreId": store["_id"], "progress": True}
    local_site.admin.put(f"folder/{folder['_id']}/move", data=chosen)
    local_site.wait(
        _job_of(local_site, f'Move folder "to move" to assetstore "of {user.login}"'),
        status=JobStatus.SUCCESS,
    )
    (moved,) = local_site.documents("file", {"_id": ObjectId(file["_id"])})
    assert str(moved["assetstoreId"]) == store["_id"]
    assert b"".join(user.client.downloadFileAsIterator(file["_id"])) == b"moved\n"


def test_girder_imports_copies_and_deletes(local_site: PackageSite, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "imported.txt").write_text("on disk\n")
    admin = local_site.admin
    parameters = {"name": "for imports", "type": 0, "root": str(tmp_path / "store")}
    store = admin.post("assetstore", parameters=parameters)
    collection = admin.createCollection("Imports")
    folder = admin.createFolder(collection["_id"], "in", parentType="collection")
    parameters = {
        "importPath": str(tmp_path / "data"),
        "destinationId": folder["_id"],
        "destinationType": "folder",
    }
    admin.post(f"assetstore/{store['_id']}/import", parameters=parameters)
    (item,) = wait_until(lambda: list(admin.listItem(folder["_id"])))
    assert item["name"] == "imported.txt"
    (file,) = wait_until(lambda: list(admin.listFile(item["_id"])))
    assert b"".join(admin.downloadFileAsIterator(file["_id"])) == b"on disk\n"

    admin.post(f"folder/{folder['_id']}/copy", parameters={"name": "copy"})
    copy = wait_until(lambda: _find_folder(admin, collection["_id"], "copy"))
    (copied,) = wait_until(lambda: list(admin.listItem(copy["_id"])))
    assert copied["name"] == "imported.txt"

    admin.delete(f"folder/{copy['_id']}")
    wait_until(lambda: not _find_folder(admin, collection["_id"], "copy"))
    admin.delete(f"collection/{collection['_id']}")
    wait_until(lambda: not [c for c in admin.listCollection() if c["name"] == "Imports"])


def _find_folder(client: Any, collection_id: str, name: str) -> dict[str, Any] | None:
    found = client.listFolder(collection_id, parentFolderType="collection", name=name)
    return next(iter(found), None)
