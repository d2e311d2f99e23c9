"""How a Girder plugin starts the tasks: one function for each way.

Each gets the documents of a file, an item with two files, and a folder, all of the user.
"""

from girder_dask import chain, group
from girder_dask.transforms import (
    GirderFileId,
    GirderFileIdAllowDirect,
    GirderItemId,
    GirderItemMetadata,
    GirderUploadJobArtifact,
    GirderUploadToFolder,
    GirderUploadToItem,
    TemporaryDirectory,
)
from ported_tasks import tasks
from ported_tasks.transforms import Announced, Shouted, Unannounced


def add(file, item, folder):
    return tasks.add.delay(1, 2)


def fields(file, item, folder):
    return tasks.add.delay(
        1,
        b=2,
        girder_job_title="Another title",
        girder_job_type="another type",
        girder_job_public=True,
        girder_job_other_fields={"ported": "another field"},
    )


def options(file, item, folder):
    return tasks.add.apply_async(args=("a",), kwargs={"b": "b"}, girder_job_title="By apply_async")


def plain(file, item, folder):
    return tasks.plain.delay(girder_job_title="Plain", girder_job_type="plain")


def steps(file, item, folder):
    return tasks.steps.delay(3)


def states(file, item, folder):
    return tasks.states.delay()


def surroundings(file, item, folder):
    return tasks.surroundings.delay()


def file_size(file, item, folder):
    return tasks.file_size.delay(GirderFileId(str(file["_id"])))


def direct(file, item, folder):
    return tasks.file_size.delay(
        GirderFileIdAllowDirect(str(file["_id"]), file["name"]), girder_job_title="Direct"
    )


def item_contents(file, item, folder):
    return tasks.item_contents.delay(GirderItemId(str(item["_id"])))


def nested(file, item, folder):
    path = GirderFileId(str(file["_id"]))
    return tasks.total.delay([path, path], named={"pair": (path, path)}, factor=10)


def metadata(file, item, folder):
    return tasks.measure.delay(
        GirderFileId(str(file["_id"])), girder_result_hooks=[GirderItemMetadata(str(item["_id"]))]
    )


def to_folder(file, item, folder):
    return tasks.report.delay(
        TemporaryDirectory(),
        "report.txt",
        girder_result_hooks=[GirderUploadToFolder(str(folder["_id"]))],
    )


def to_item(file, item, folder):
    return tasks.report.delay(
        TemporaryDirectory(),
        "added.txt",
        girder_job_title="Addition",
        girder_result_hooks=[GirderUploadToItem(str(item["_id"]))],
    )


def to_item_and_deleted(file, item, folder):
    return tasks.report.delay(
        TemporaryDirectory(),
        "added.txt",
        girder_job_title="Deletion",
        girder_result_hooks=[GirderUploadToItem(str(item["_id"]), delete_file=True)],
    )


def tree(file, item, folder):
    return tasks.tree.delay(
        TemporaryDirectory(), girder_result_hooks=[GirderUploadToFolder(str(folder["_id"]))]
    )


def both(file, item, folder):
    return tasks.both.delay(
        TemporaryDirectory(),
        girder_result_hooks=[
            GirderUploadToFolder(str(folder["_id"])),
            GirderItemMetadata(str(item["_id"])),
        ],
    )


def artifact(file, item, folder):
    return tasks.report.delay(
        TemporaryDirectory(),
        "artifact.txt",
        girder_result_hooks=[GirderUploadJobArtifact()],
        girder_job_title="Artifact",
    )


def own_transforms(file, item, folder):
    return tasks.echo.delay(Shouted("ahoy"), girder_result_hooks=[Announced()])


def fails(file, item, folder):
    return tasks.fails.delay("no such luck", girder_result_hooks=[Announced()])


def missing(file, item, folder):
    return tasks.file_size.delay(
        GirderFileId("0123456789abcdef01234567"),
        girder_job_title="Missing",
        girder_result_hooks=[Announced()],
    )


def hook_fails(file, item, folder):
    return tasks.both.delay(
        TemporaryDirectory(),
        girder_job_title="Hook fails",
        girder_result_hooks=[Announced(), Unannounced()],
    )


def waits(file, item, folder):
    return tasks.waits.delay()


def parent(file, item, folder):
    return tasks.parent.delay(4)


def described(file, item, folder):
    inputs = {"text": {"data": "ab"}, "times": {"mode": "inline", "data": 3}}
    tasks.scale.call_item_task(inputs)
    return tasks.scale.delay("ab", 3)


def describes(file, item, folder):
    return tasks.describes.delay()


def a_chain(file, item, folder):
    return chain(
        tasks.add.s("a", "b", girder_job_title="First"),
        tasks.add.s("c", girder_job_title="Second"),
        tasks.add.s("d", girder_job_title="Third"),
    ).apply_async()


def a_group(file, item, folder):
    return group(tasks.add.s(1, n, girder_job_title=f"Member {n}") for n in range(3)).apply_async()


STARTS = {
    function.__name__: function
    for function in (
        add,
        fields,
        options,
        plain,
        steps,
        states,
        surroundings,
        file_size,
        direct,
        item_contents,
        nested,
        metadata,
        to_folder,
        to_item,
        to_item_and_deleted,
        tree,
        both,
        artifact,
        own_transforms,
        fails,
        missing,
        hook_fails,
        waits,
        parent,
        described,
        describes,
        a_chain,
        a_group,
    )
}
