"""Slices of volumes as sprites for an HTML page: one PNG for each plane and layer, with the slices stacked."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tasks.volume.grid import Grid, network_axes, orientation
from tasks.volume.scan import Voxels

PIXELS = 8_000_000  # over all sprites of a page: about as many bytes
MIN_SLICES, MAX_SLICES = 5, 24
SPREAD = 0.15  # normalised difference that is drawn in full colour
# Plane, the axis of [superior, anterior, right] across it, and the directions of its left, right, top and bottom.
PLANES = (("axial", 0, "LRAP"), ("coronal", 1, "LRSI"), ("sagittal", 2, "PASI"))


@dataclass(frozen=True)
class Plane:
    """One of the three planes of a page.

    Args:
        name: "axial", "coronal" or "sagittal".
        width: Pixels of a slice.
        height: Pixels of a slice.
        aspect: Millimetres of width over those of height.
        sides: Anatomical directions of left, right, top and bottom.
        places: Of each slice along the axis across the plane, in mm from the middle of the volume.
        sprites: PNG in base64 by layer, with the slices stacked.
    """

    name: str
    width: int
    height: int
    aspect: float
    sides: str
    places: tuple[float, ...]
    sprites: Mapping[str, str]


def plane_sprites(grid: Grid, layers: Mapping[str, Voxels], differences: frozenset[str]) -> list[Plane]:
    """Draw slices of the layers through the foreground, upright whatever the axis order of the file.

    Args:
        grid: Of every layer.
        layers: By name, `[i, j, k]`; normalised, 0 black and 1 white.
        differences: Names of the layers that are differences, drawn in blue below and red above 0.
    """
    worlds, _ = orientation(grid)
    axes = network_axes(grid, depth=worlds.index(2))  # from (i, j, k) to (superior, anterior, right)
    upright = {name: axes.to_network(volume) for name, volume in layers.items()}
    spacing = axes.of_file(grid.spacing)
    first = next(iter(upright.values()))
    area = sum(first.size // size for size in first.shape)
    count = int(np.clip(PIXELS // (area * len(layers)), MIN_SLICES, MAX_SLICES))
    planes = []
    for name, across, sides in PLANES:
        rows, columns = (axis for axis in range(3) if axis != across)
        places = _places(first, across, count)
        planes.append(
            Plane(
                name=name,
                width=first.shape[columns],
                height=first.shape[rows],
                aspect=first.shape[columns] * spacing[columns] / (first.shape[rows] * spacing[rows]),
                sides=sides,
                places=tuple(float((place - (first.shape[across] - 1) / 2) * spacing[across]) for place in places),
                sprites={
                    layer: _sprite(volume.take(places, axis=across), across, signed=layer in differences)
                    for layer, volume in upright.items()
                },
            )
        )
    return planes


def _places(volume: Voxels, axis: int, count: int) -> list[int]:
    """Spread slices evenly over the part of an axis that holds the foreground."""
    filled = np.nonzero((volume > 0.05).any(axis=tuple(other for other in range(3) if other != axis)))[0]
    low, high = (int(filled[0]), int(filled[-1])) if filled.size else (0, volume.shape[axis] - 1)
    margin = (high - low) * 0.06
    return sorted({round(place) for place in np.linspace(low + margin, high - margin, count).tolist()})


def _sprite(slices: Voxels, across: int, *, signed: bool) -> str:
    """Draw stacked slices, rows upwards, as a PNG with 256 shades."""
    from matplotlib import colormaps  # noqa: PLC0415 - as in `new_figure`

    upwards = np.moveaxis(slices, across, 0)[:, ::-1]
    scaled = upwards / (2 * SPREAD) + 0.5 if signed else upwards
    shades = (np.clip(scaled, 0, 1) * 255).astype(np.uint8).reshape(-1, upwards.shape[2])
    image = Image.fromarray(np.ascontiguousarray(shades))
    if signed:
        palette = (np.asarray(colormaps["RdBu_r"](np.arange(256)))[:, :3] * 255).astype(np.uint8)
        image.putpalette(palette.tobytes())
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=False)
    return base64.b64encode(out.getvalue()).decode()
