"""Voxels as a file stores them, by dtype, slope and intercept, without silent wrapping or quantisation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from configs.errors import InputError

WRITABLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


@dataclass(frozen=True)
class Encoding:
    """Encoding of voxels on disk: `stored = (voxel − inter) / slope`.

    Args:
        dtype: Name of the dtype on disk.
        slope: Unit of the volume per stored step; not 0.
        inter: What a stored 0 means.
    """

    dtype: str
    slope: float = 1.0
    inter: float = 0.0

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest float that an integer dtype holds."""
        limits = np.iinfo(self.dtype)
        lowest, highest = float(limits.min), float(limits.max)
        # The largest int64 is not a float64.
        return lowest, highest if int(highest) <= limits.max else float(np.nextafter(highest, 0))

    def encode(self, voxels: NDArray[np.float32]) -> NDArray[np.generic]:
        """Turn voxels into stored numbers: integers are rounded and clipped at the dtype's ends, NaN becomes 0."""
        dtype = np.dtype(self.dtype)
        if dtype.kind == "f":
            return voxels.astype(dtype)
        # float32 holds every int16 but not every int32: it would round the largest up, out of range.
        stored: NDArray[Any] = voxels.astype(np.float32 if dtype.itemsize <= 2 else np.float64)
        if (self.slope, self.inter) != (1, 0):
            np.subtract(stored, self.inter, out=stored)
            np.divide(stored, self.slope, out=stored)
        np.clip(np.rint(stored, out=stored), *self.limits, out=stored)
        np.nan_to_num(stored, copy=False, nan=0)
        return stored.astype(dtype)

    def decode(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Turn stored numbers into voxels."""
        voxels = stored.astype(np.float32)
        if (self.slope, self.inter) != (1, 0):
            voxels *= np.float32(self.slope)
            voxels += np.float32(self.inter)
        return voxels


def choose_encoding(
    stored: DTypeLike, slope: float, inter: float, wanted: DTypeLike | None, extent: tuple[float, float] | None
) -> Encoding:
    """Choose how to store a volume that was made from another.

    Args:
        stored: The dtype of the input on disk.
        slope: Of the input.
        inter: Of the input.
        wanted: The requested dtype; None keeps integers and their slope, and stores all else as float32.
        extent: Lowest and highest value of the input, if known. They give integers made from floats a slope that spans
            them with a tenth to spare at either end, where a slope of 1 would leave few steps.

    Raises:
        InputError: A dtype that is not written.

    >>> choose_encoding("int16", 0.5, -10, None, None)
    Encoding(dtype='int16', slope=0.5, inter=-10)
    >>> choose_encoding("float64", 1, 0, None, None)
    Encoding(dtype='float32', slope=1.0, inter=0.0)
    """
    before, name = np.dtype(stored), stored_name(stored, wanted)
    if np.dtype(name).kind == "f":
        return Encoding(name)
    whole = before.kind in "iu"
    if whole and np.can_cast(before, name):
        return Encoding(name, slope, inter)
    limits = np.iinfo(name)
    fits = whole and (slope, inter) == (1, 0) and extent and limits.min <= extent[0] and extent[1] <= limits.max
    if extent is None or fits:
        return Encoding(name)
    low, high = extent
    spare = (high - low) / 10 or 1.0
    span = (high - low + 2 * spare) / (float(limits.max) - float(limits.min))
    return Encoding(name, span, low - spare - span * limits.min)


def stored_name(stored: DTypeLike, wanted: DTypeLike | None) -> str:
    """Return the name of the dtype that `choose_encoding` chooses; arguments and errors as there."""
    if wanted is not None:
        return writable_name(wanted)
    before = np.dtype(stored)
    return before.name if before.name in WRITABLE and before.kind in "iu" else "float32"


def writable_name(wanted: DTypeLike) -> str:
    """Return the name of a requested dtype.

    Raises:
        InputError: Volumes are not written in it.
    """
    try:
        name = np.dtype(wanted).name
    except TypeError:
        name = str(wanted)
    if name not in WRITABLE:
        raise InputError(
            f"Cannot write {name} voxels: that dtype is not written.", f"Choose one of {', '.join(WRITABLE)}."
        )
    return name
