"""A picture of three orthogonal planes of volumes next to each other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tasks.files.atomic import replacing
from tasks.volume.scan import Voxels
from workflow.pages.rendering import new_figure

ERROR_RANGE = 0.25  # normalised difference that is drawn brightest


def write_planes(path: Path, volumes: Mapping[str, Voxels], truth: Voxels, places: Sequence[int]) -> None:
    """Write a picture with a column for each volume, the truth, and the absolute error of each volume but the first.

    Args:
        path: Of the PNG.
        volumes: By name, `[i, j, k]`, normalised.
        truth: Of the same shape.
        places: Voxel of each axis that its plane goes through.
    """
    errors = {f"|{name} − truth|": np.abs(volume - truth) for name, volume in list(volumes.items())[1:]}
    columns = {**volumes, "truth": truth, **errors}
    # Height over width of each plane as it is drawn.
    ratios = [truth.shape[2 if axis < 2 else 1] / truth.shape[1 if axis == 0 else 0] for axis in range(3)]
    figure = new_figure(figsize=(2.2 * len(columns), 2.2 * sum(ratios) + 0.5), dpi=110)
    rows = figure.subplots(3, len(columns), gridspec_kw={"height_ratios": ratios, "wspace": 0.02, "hspace": 0.02})
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        rows[axis][0].set_ylabel(plane, fontsize=9)
        for axes, (title, volume) in zip(rows[axis], columns.items(), strict=True):
            shades = {"cmap": "magma", "vmax": ERROR_RANGE} if title in errors else {"cmap": "gray", "vmax": 1}
            axes.imshow(volume.take(places[axis], axis).T, origin="lower", vmin=0, interpolation="nearest", **shades)
            axes.set(xticks=[], yticks=[])
            if axis == 0:
                axes.set_title(title, fontsize=9)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", bbox_inches="tight")
