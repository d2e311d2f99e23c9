"""Segmentation of blobs in a picture: ordinary scikit-image, independent of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from skimage import color, filters, io, measure, morphology, segmentation, util

#: Objects whose area is less than this fraction of the median area are discarded as dirt.
MIN_AREA_FRACTION = 0.3
ORANGE = (255, 64, 0)


def read(path: str) -> np.ndarray:
    """Read a picture as 8-bit RGB."""
    image = io.imread(path)
    if image.ndim == 2:
        image = color.gray2rgb(image)
    return util.img_as_ubyte(image[..., :3])


def foreground(image: np.ndarray) -> np.ndarray:
    """Return a mask of the foreground: bright areas of a gray picture, stained ones of tissue."""
    if (image == image[..., :1]).all():
        signal = filters.gaussian(image[..., 0], sigma=1)
    else:
        # Haematoxylin is the stain of cell nuclei.
        signal = filters.gaussian(color.rgb2hed(image)[..., 0], sigma=2)
    # One threshold fits the whole picture once uneven light is taken away.
    signal = signal - filters.gaussian(signal, sigma=min(signal.shape) / 6)
    mask = ndimage.binary_fill_holes(signal > filters.threshold_otsu(signal))
    return morphology.opening(mask, morphology.disk(2))


def split(mask: np.ndarray) -> np.ndarray:
    """Number the objects of a mask from 1, and split touching objects where they are narrow."""
    depth = filters.gaussian(ndimage.distance_transform_edt(mask), sigma=2)
    seeds = measure.label(morphology.h_maxima(depth, 1))
    labels = segmentation.watershed(-depth, seeds, mask=mask)
    areas = np.bincount(labels.ravel())
    if len(areas) > 1:
        labels[areas[labels] < MIN_AREA_FRACTION * np.median(areas[1:])] = 0
    return segmentation.relabel_sequential(labels)[0]


def summarize(labels: np.ndarray) -> dict[str, Any]:
    """Count the objects and measure them. Diameters are in pixels."""
    areas = np.bincount(labels.ravel())[1:]
    # The diameters of circles with the same areas. Without objects, they are 0.
    diameters = np.sqrt(4 * areas / np.pi) if len(areas) else np.zeros(1)
    return {
        "objects": len(areas),
        "median_diameter": round(float(np.median(diameters)), 1),
        "smallest_diameter": round(float(diameters.min()), 1),
        "largest_diameter": round(float(diameters.max()), 1),
    }


def draw(image: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Write the picture with the outlines of the objects on it."""
    drawing = image.copy()
    drawing[segmentation.find_boundaries(labels)] = ORANGE
    io.imsave(path, drawing, check_contrast=False)
