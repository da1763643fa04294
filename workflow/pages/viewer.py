"""Layers of a page for NiiVue, the viewer that reads them: maintained, and known to users of fMRIPrep and FreeSurfer.

It is inlined from the nilearn package, which carries it as one script that sets a global and needs no worker, no
module and no network. Tried, and not taken: the wheel of ipyniivue, whose bundle exports a notebook widget and not the
viewer; brainsprite, also in nilearn, which draws one picture of all slices (555 MB in the browser for 512x512x512
voxels), with cubic voxels only, and has neither zoom nor window.

NiiVue needs WebGL 2, and up to 13 bytes of graphics memory for a voxel. So a layer is shown at display precision and
with at most `MAX_VOXELS`: a larger volume as means of blocks, and the part around its middle at full resolution.
"""

import base64
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import count
from math import ceil, prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from configs.axes import FileShape
from configs.errors import InputError
from tasks.volume.grid import Grid, network_axes, orientation
from tasks.volume.intensity import Intensity
from tasks.volume.nifti import display_copy
from tasks.volume.scan import Voxels

THREADS = 2  # that encode layers: a pair of volumes of `MAX_VOXELS` each at a time
MAX_VOXELS = 9_000_000  # of a layer: 208 x 208 x 208
MAX_AXIS = 2048  # texels along an axis of a texture
PART = 160  # voxels along each axis of the part that is shown at full resolution
SPREAD = 0.15  # normalised difference that is drawn in full colour
STORED, STORED_SIGNED = (0.0, 1.25), (-2 * SPREAD, 2 * SPREAD)  # normalised, in 256 steps
PICTURE_HEIGHT = 220  # pixels of a plane
# The colours of a difference at its ends and at 0.
BLUE, WHITE, RED = (33, 102, 172), (247, 247, 247), (178, 24, 43)


@dataclass(frozen=True, eq=False)
class View:
    """The part of a grid that is shown at once.

    Args:
        name: Shown in the list of views.
        grid: Of the shown voxels.
        part: Of the whole grid.
        factors: Voxels along (i, j, k) whose mean is one shown voxel.
    """

    name: str
    grid: Grid
    part: tuple[slice, slice, slice]
    factors: tuple[int, int, int]

    def of(self, voxels: Voxels) -> Voxels:
        """Return the shown voxels of a volume on the whole grid."""
        return block_means(voxels[self.part], self.factors)

    def places(self, axis: int) -> NDArray[np.float64]:
        """Return the middles of the shown voxels along an axis, as indices of the whole grid."""
        factor = self.factors[axis]
        first = (self.part[axis].start or 0) + (factor - 1) / 2
        return first + np.arange(self.grid.shape[axis], dtype=np.float64) * factor


@dataclass(frozen=True)
class Layer:
    """A volume to look at.

    Args:
        name: Shown in the lists of layers.
        shown: Returns its voxels in a view, `[i, j, k]`, normalised: 0 black and 1 white.
        signed: It is a difference, drawn in blue below 0 and red above.
    """

    name: str
    shown: Callable[[View], Voxels]
    signed: bool = False

    @property
    def stored(self) -> tuple[float, float]:
        """Normalised values of the first and of the last of the 256 steps."""
        return STORED_SIGNED if self.signed else STORED

    def steps(self, view: View) -> NDArray[np.uint8]:
        """Return its voxels in a view in 256 steps."""
        low, high = self.stored
        steps = (self.shown(view) - np.float32(low)) * np.float32(255 / (high - low)) + np.float32(0.5)
        return np.clip(steps, 0, 255, out=steps).astype(np.uint8)


@dataclass(frozen=True)
class ShownLayer:
    """A layer as the page holds it.

    Args:
        name: Of the layer.
        signed: It is a difference.
        window: Values of black and white, or of full blue and full red, in the unit of the file.
        files: For each view a compressed NIfTI file in base64.
        picture: Three planes through the middle, for browsers without WebGL 2: a PNG in base64.
    """

    name: str
    signed: bool
    window: tuple[float, float]
    files: tuple[str, ...]
    picture: str


def views(grid: Grid, before: Voxels) -> list[View]:
    """Choose what of a volume is shown at once: all of it, and, if it is reduced for that, its middle as it is."""
    everything = (slice(None), slice(None), slice(None))
    factors = _factors(grid)
    whole = View("whole volume", _shown_grid(grid, everything, factors), everything, factors)
    if max(factors) == 1:
        return [whole]
    starts = [
        int(np.clip(middle - PART // 2, 0, max(0, size - PART)))
        for middle, size in zip(_middle(before), grid.shape, strict=True)
    ]
    i, j, k = (slice(start, min(start + PART, size)) for start, size in zip(starts, grid.shape, strict=True))
    part = View("middle, full resolution", _shown_grid(grid, (i, j, k), (1, 1, 1)), (i, j, k), (1, 1, 1))
    return [replace(whole, name=f"whole, means of {' x '.join(map(str, factors))} voxels"), part]


def shown_layers(layers: Sequence[Layer], chosen: Sequence[View], unit: Intensity) -> list[ShownLayer]:
    """Encode layers for the page.

    Args:
        layers: To look at.
        chosen: What is shown at once, the whole volume first.
        unit: Values of the file that are 0 and 1 in the layers.
    """
    span = unit.high - unit.low

    def encoded(layer: Layer) -> ShownLayer:
        low, high = layer.stored
        slope, inter = span * (high - low) / 255, span * low + (0.0 if layer.signed else unit.low)
        steps = [layer.steps(view) for view in chosen]
        files = tuple(
            base64.b64encode(display_copy(one, view.grid, slope, inter)).decode()
            for one, view in zip(steps, chosen, strict=True)
        )
        window = (-SPREAD * span, SPREAD * span) if layer.signed else (unit.low, unit.high)
        picture = _picture(steps[0], chosen[0].grid, signed=layer.signed)
        return ShownLayer(layer.name, layer.signed, window, files, picture)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(encoded, layers))


def _picture(steps: NDArray[np.uint8], grid: Grid, *, signed: bool) -> str:
    """Draw three planes through the middle, upright for any axis order of the file."""
    worlds, _ = orientation(grid)
    axes = network_axes(grid, depth=worlds.index(2))  # from (i, j, k) to (superior, anterior, right)
    upright, spacing = axes.to_network(steps), axes.of_file(grid.spacing)
    planes = []
    for across in range(3):
        height, width = (axis for axis in range(3) if axis != across)
        plane = Image.fromarray(np.ascontiguousarray(upright.take(upright.shape[across] // 2, across)[::-1]))
        if signed:
            plane.putpalette(_palette())
        ratio = plane.width * spacing[width] / (plane.height * spacing[height])
        size = max(1, min(round(PICTURE_HEIGHT * ratio), 4 * PICTURE_HEIGHT)), PICTURE_HEIGHT
        planes.append(np.asarray(plane.convert("RGB").resize(size, Image.Resampling.NEAREST)))
    out = io.BytesIO()
    Image.fromarray(np.concatenate(planes, axis=1)).save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


def niivue() -> str:
    """Return NiiVue's script, for inlining.

    Raises:
        InputError: The nilearn package does not carry it.
    """
    found = find_spec("nilearn")
    script = Path(found.origin).parent / "_assets" / "js" / "niivue.umd.js" if found and found.origin else Path()
    if not script.is_file():
        raise InputError("Cannot make a QC page: the nilearn package does not carry NiiVue.", "Run `make setup` again.")
    return script.read_text(encoding="utf-8").replace("</script", r"<\/script")


def block_means(voxels: Voxels, factors: tuple[int, int, int]) -> Voxels:
    """Return the means of blocks; those at the end of an axis may hold fewer voxels.

    >>> block_means(np.arange(5, dtype=np.float32).reshape(5, 1, 1), (2, 1, 1)).ravel().tolist()
    [0.5, 2.5, 4.0]
    """
    for axis, factor in enumerate(factors):
        if factor > 1:
            starts = np.arange(0, voxels.shape[axis], factor)
            sizes = np.diff([*starts, voxels.shape[axis]]).astype(np.float32)
            sums: Voxels = np.add.reduceat(voxels, starts, axis=axis)
            voxels = sums / sizes.reshape([-1 if axis == other else 1 for other in range(3)])
    return voxels


def _factors(grid: Grid) -> tuple[int, int, int]:
    """Choose the blocks, as cubic as the voxels allow, whose means are few enough to be shown."""
    finest = min(grid.spacing)
    for step in count(1):
        i, j, k = (max(1, round(step * finest / spacing)) for spacing in grid.spacing)
        shape = [ceil(size / factor) for size, factor in zip(grid.shape, (i, j, k), strict=True)]
        if prod(shape) <= MAX_VOXELS and max(shape) <= MAX_AXIS:
            return i, j, k
    raise AssertionError


def _shown_grid(grid: Grid, part: tuple[slice, slice, slice], factors: tuple[int, int, int]) -> Grid:
    """Return the grid of the shown voxels; the middle of a block is where its mean is shown."""
    transform = np.diag([*factors, 1.0])
    transform[:3, 3] = [(piece.start or 0) + (factor - 1) / 2 for piece, factor in zip(part, factors, strict=True)]
    sizes = [len(range(*piece.indices(size))) for piece, size in zip(part, grid.shape, strict=True)]
    i, j, k = (ceil(size / factor) for size, factor in zip(sizes, factors, strict=True))
    return Grid(FileShape(i, j, k), grid.affine @ transform)


def _middle(voxels: Voxels) -> list[int]:
    """Return the voxel in the middle of the foreground."""
    thinned = voxels[::4, ::4, ::4] > 0.05
    found = [np.nonzero(thinned.any(axis=tuple({0, 1, 2} - {axis})))[0] for axis in range(3)]
    return [
        4 * int(places.mean()) if places.size else size // 2 for places, size in zip(found, voxels.shape, strict=True)
    ]


def _palette() -> list[int]:
    """Return the 256 colours of a difference, as `viewer.js` has them."""
    ends = np.array([BLUE, WHITE, RED])
    # The window is the inner half of what is stored.
    places = np.linspace(-1, 3, 256)
    return (
        np.stack([np.interp(places, (0, 1, 2), ends[:, channel]) for channel in range(3)], 1)
        .astype(int)
        .ravel()
        .tolist()
    )
