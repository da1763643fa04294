"""Padding: voxels that hold no measurement, such as those outside the circle that a CT scanner reconstructs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.axes import NetworkShape
from tasks.imaging.resample import Window

# Lower than air, as scanners and converters write it; NaN and infinities are padding too.
PADDING_VALUES = (-1024.0, -2000.0, -2048.0, -3024.0, -32768.0)
CLEARANCE = 20.0  # above a padding value, where measured voxels are rare: air of that value has noise and edges
MAX_RARE_SHARE = 0.01  # of the padding voxels
MIN_SHARPNESS = 0.8  # of the edge of padding: the first step over the first two


@dataclass(frozen=True, eq=False)
class Padding:
    """Voxels of a volume that stay as they are.

    Args:
        value: Of all of them.
        mask: Where they are.
    """

    value: float
    mask: NDArray[np.bool_]

    def resampled(self, shape: NetworkShape, window: Window) -> NDArray[np.bool_]:
        """Return a window of the mask on a grid of another shape over the same field of view, by nearest neighbour."""
        sides = zip(self.mask.shape, shape, window, strict=True)
        nearest = (((np.arange(*side) + 0.5) * size / wanted).astype(int) for size, wanted, side in sides)
        return self.mask[np.ix_(*nearest)]


def find_padding(voxels: NDArray[np.float32]) -> tuple[Padding, ...]:
    """Find the padding of a volume, any axis order."""
    found = []
    lowest, finite = float(voxels.min()), None
    if not np.isfinite([lowest, voxels.max()]).all():
        finite = np.isfinite(voxels)
        found.append(Padding(float("nan"), ~finite))
        lowest = float(voxels.min(where=finite, initial=np.inf))
    if lowest in PADDING_VALUES:
        mask = voxels == lowest
        measured = ~mask if finite is None else finite & ~mask
        above = np.count_nonzero((voxels > lowest) & (voxels <= lowest + CLEARANCE))
        rare = above <= MAX_RARE_SHARE * np.count_nonzero(mask)
        if rare and measured.any() and _is_sharp(voxels, mask, measured, lowest):
            found.append(Padding(lowest, mask))
    return tuple(found)


def fill(voxels: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Replace the voxels of a mask by the nearest others along an axis; by the lowest, or 0, where there are none."""
    filled, lowest = voxels.copy(), voxels.min(where=~mask, initial=np.inf)
    filled[mask] = lowest if np.isfinite(lowest) else 0
    nearest = np.full(voxels.shape, max(voxels.shape), np.int32)
    for axis in range(3):
        places = np.arange(voxels.shape[axis], dtype=np.int32).reshape([-1 if a == axis else 1 for a in range(3)])
        for way in (slice(None), slice(None, None, -1)):
            turn: tuple[Any, ...] = (slice(None),) * axis + (way,)
            others = np.where(mask[turn], np.int32(-1), places)
            np.maximum.accumulate(others, axis=axis, out=others)
            distance = places - others
            closer = (others >= 0) & (distance < nearest[turn]) & mask[turn]
            values = np.take_along_axis(voxels[turn], np.maximum(others, 0), axis)
            filled[turn][closer] = values[closer]
            nearest[turn][closer] = distance[closer]
    return filled


def _is_sharp(voxels: NDArray[np.float32], mask: NDArray[np.bool_], measured: NDArray[np.bool_], value: float) -> bool:
    """Return whether voxels next to a mask are as far from its value as those behind them.

    A measured edge, such as that of skin in air, is blurred: the voxels next to the air are between it and the skin.
    """
    next_to, behind = [], []
    for axis in range(3):
        for way in (slice(None), slice(None, None, -1)):
            inside, outside = (np.moveaxis(array, axis, 0)[way] for array in (mask, measured))
            values = np.moveaxis(voxels, axis, 0)[way]
            edge = inside[:-2] & outside[1:-1] & outside[2:]
            next_to.append(values[1:-1][edge])
            behind.append(values[2:][edge])
    if not sum(part.size for part in next_to):
        return True
    first, second = (float(np.median(np.concatenate(parts))) - value for parts in (next_to, behind))
    return first > MIN_SHARPNESS * second
