"""Axes of volumes: names, and shapes along the axes of a file or of the network, which are types that do not mix."""

from collections.abc import Iterable
from math import prod
from typing import NamedTuple, TypeVar

T = TypeVar("T")
Triple = tuple[int, int, int]
TensorShape = tuple[int, int, int, int, int]  # along TENSOR_AXES

AXES = ("depth", "height", "width")
TENSOR_AXES = ("batch", *AXES, "channels")


class FileShape(NamedTuple):
    """Voxels along the axes of a file; `tasks.volume.grid.NetworkAxes` converts."""

    i: int
    j: int
    k: int

    def __str__(self) -> str:
        return str(tuple(self))


class NetworkShape(NamedTuple):
    """Voxels along the axes of the network; `tasks.volume.grid.NetworkAxes` converts."""

    depth: int
    height: int
    width: int

    def __str__(self) -> str:
        return str(tuple(self))


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Return one value per axis as a tuple whose length the type checker knows."""
    first, second, third = values
    return first, second, third


def total_stride(strides: Iterable[Triple]) -> NetworkShape:
    """Return the voxels of the last output per voxel of the latent.

    Args:
        strides: Of each stage, along depth, height and width.

    >>> total_stride([(2, 2, 2), (1, 2, 2)])
    NetworkShape(depth=2, height=4, width=4)
    """
    return NetworkShape(*(prod(axis) for axis in zip(*strides, strict=True)))
