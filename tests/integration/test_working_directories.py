"""Jobs at once on one worker that write files of the same name, on a real stack."""

from __future__ import annotations

from typing import Any

from girder_dask.jobs import JobStatus

CODE = """
import os, pathlib, time
pathlib.Path('answer.txt').write_text(f'the answer of {n}')
time.sleep(0.5)
print(*os.listdir())
result = 'answer.txt'
"""


def test_each_of_four_jobs_uploads_the_text_that_it_has_written(
    girder_stack: Any, girder_user: Any
) -> None:
    folder = girder_user.folder["_id"]

    def start() -> list[str]:
        from my_worker_tasks import does

        from girder_dask.transforms import GirderUploadToFolder

        return [
            str(does.delay(CODE, n=n, girder_result_hooks=[GirderUploadToFolder(folder)]).id)
            for n in range(4)
        ]

    jobs = girder_stack.call(start, user=girder_user)
    for job_id in jobs:
        assert girder_stack.wait(job_id)["status"] == JobStatus.SUCCESS, girder_stack.log(job_id)
        assert girder_stack.log(job_id) == "answer.txt\n"
    client = girder_user.client
    items = [item for item in client.listItem(folder) if item["name"].startswith("answer")]
    texts = [
        b"".join(client.downloadFileAsIterator(file["_id"])).decode()
        for item in items
        for file in client.listFile(item["_id"])
    ]
    assert sorted(texts) == [f"the answer of {n}" for n in range(4)]
