"""Pictures: Matplotlib's figures, and a restored volume next to what it came from."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.files.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLANES = ("sagittal", "coronal", "axial")
ERROR_RANGE = 0.25


def new_figure(**options: Any) -> "Figure":  # noqa: ANN401 - as Matplotlib takes them
    """Make a figure that is drawn without a display."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second, not spent before a page is drawn

    return Figure(**options)


def png(figure: "Figure") -> bytes:
    """Draw a figure."""
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def comparison_picture(
    path: Path, volumes: Mapping[str, NDArray[np.float32]], truth: NDArray[np.float32], centre: tuple[int, int, int]
) -> None:
    """Draw three planes of several volumes, of the truth, and of the error of each volume but the first.

    Args:
        path: Where the PNG goes.
        volumes: By title; each on the grid of the truth, `(i, j, k)`, on the [0, 1] scale; the first is the input.
        truth: True volume, of the same shape and scale.
        centre: Voxel through which the planes go.
    """
    titled = {**volumes, "truth": truth}
    errors = {f"|{title} − truth|": np.abs(volume - truth) for title, volume in list(volumes.items())[1:]}
    columns = len(titled) + len(errors)
    # Rows over columns of each plane as it is drawn.
    ratios = [truth.shape[2 if axis < 2 else 1] / truth.shape[1 if axis == 0 else 0] for axis in range(3)]
    figure = new_figure(figsize=(2.2 * columns, 2.2 * sum(ratios) + 0.5), dpi=110)
    grid = figure.add_gridspec(3, columns, height_ratios=ratios, wspace=0.02, hspace=0.02)
    for axis, (plane, place) in enumerate(zip(PLANES, centre, strict=True)):
        for column, (title, volume) in enumerate({**titled, **errors}.items()):
            axes = figure.add_subplot(grid[axis, column])
            is_error = title in errors
            axes.imshow(
                volume.take(place, axis=axis).T,
                origin="lower",
                cmap="magma" if is_error else "gray",
                vmin=0,
                vmax=ERROR_RANGE if is_error else 1,
                interpolation="nearest",
            )
            axes.set_xticks([])
            axes.set_yticks([])
            if axis == 0:
                axes.set_title(title, fontsize=9)
            if column == 0:
                axes.set_ylabel(plane, fontsize=9)
    with replacing(path) as partial:
        figure.savefig(partial, bbox_inches="tight")
