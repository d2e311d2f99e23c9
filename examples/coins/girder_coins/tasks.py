"""What runs on the workers. Girder imports this module too, but never runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from girder_dask import task


@task(title="Count coins", type="coins", bind=True)
def count_coins(self: Any, picture: str, directory: str) -> tuple[dict[str, Any], str]:
    """Count the objects in a picture and draw their outlines.

    Parameters
    ----------
    picture
        The path of the picture.
    directory
        Where to write the drawing.

    Returns
    -------
    summary, drawing
        What was found, and the path of a PNG.
    """
    # Only the workers have scikit-image, so it is imported where it is used.
    from girder_coins import segmentation

    # `self` is the running job: this moves the bar on its page.
    progress = self.job_manager.updateProgress
    progress(total=4, current=0, message="Reading the picture")
    image = segmentation.read(picture)
    # Whatever is printed is in the job's log within a second.
    print(f"{Path(picture).name}: {image.shape[1]} x {image.shape[0]} pixels")

    progress(current=1, message="Separating objects from the background")
    mask = segmentation.foreground(image)
    print(f"{mask.mean():.1%} of the picture is foreground")

    progress(current=2, message="Telling objects apart")
    labels = segmentation.split(mask)

    progress(current=3, message="Measuring and drawing")
    summary = segmentation.summarize(labels)
    print("{objects} objects, median diameter {median_diameter} pixels".format(**summary))
    print("from {smallest_diameter} to {largest_diameter} pixels".format(**summary))
    drawing = Path(directory) / f"{Path(picture).stem}-outlines.png"
    segmentation.draw(image, labels, drawing)

    progress(current=4, message=f"Found {summary['objects']} objects")
    return summary, str(drawing)
