"""The comparison of a restored volume with its input: the volume, degraded again, is the sum of a part for each core.

A degradation is linear and separable: the part of a core is its product with the columns of the matrix of each axis,
over the rows that the core touches. The worker that restored the core makes it, but for the products with more rows
than columns: a slab that is thin, or of a scan whose k-space was cut, touches more of its input than it holds. These
are left to the sum, so that no part is larger than need be.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.axes import NetworkShape, triple
from configs.degradation import Degradation
from tasks.imaging.consistency import axis_matrices
from tasks.imaging.separable import along
from tasks.sharding.plan import Box
from tasks.volume.encoding import Encoding
from tasks.volume.grid import NetworkAxes

Array = NDArray[np.float32]
Products = tuple[tuple[int, Array], ...]  # an axis and its matrix, `[outputs, inputs]`, one after another


@dataclass(frozen=True)
class Comparison:
    """Comparison of a restored volume with its input.

    Args:
        recipe: The degradation from the restored volume to the input.
        axes: Between file axes and network axes.
        encoding: Of the output, as which it is compared; None for a volume that is corrected before it is encoded.
    """

    recipe: Degradation
    axes: NetworkAxes
    encoding: Encoding | None = None

    def part(self, core: Array, box: Box, target_shape: NetworkShape) -> Array:
        """Degrade a core again; see `Footprint`.

        Args:
            core: `(depth, height, width)`, as it is compared.
            box: Its place in the target grid.
            target_shape: Of that grid.
        """
        found = footprint(box, target_shape, self.recipe)
        # In the layout of the file, of which the last bits of a product may depend.
        part = self.axes.to_network(np.asfortranarray(self.axes.to_file(core)))
        for axis, matrix in found.shrinking:
            part = along(axis, matrix, part)
        return found.stored(part)


@dataclass(frozen=True, eq=False)
class Footprint:
    """The input's voxels that a core touches, and the way there.

    Args:
        window: Where they are in the input.
        shape: Of the part as it is stored.
        shrinking: Products of the core that make the part; first those that become shortest.
        growing: Products of the part that are left.
    """

    window: tuple[slice, slice, slice]
    shape: tuple[int, int, int]
    shrinking: Products
    growing: Products

    @property
    def _first(self) -> int:
        """The axis that a part is stored by, as the last product has made it: its layout remains, and the last bits."""
        return self.shrinking[-1][0] if self.shrinking else 0

    def stored(self, part: Array) -> Array:
        """Return a part, `(depth, height, width)`, as it is stored."""
        return np.ascontiguousarray(np.moveaxis(part, self._first, 0))

    def spread(self, stored: Array) -> Array:
        """Return what a stored part adds to the window of the input."""
        part = np.moveaxis(stored, 0, self._first)
        for axis, matrix in self.growing:
            part = along(axis, matrix, part)
        return part


def footprint(box: Box, target_shape: NetworkShape, recipe: Degradation) -> Footprint:
    """Find the input's voxels that a core touches.

    Args:
        box: The place of the core in the target grid.
        target_shape: Of that grid.
        recipe: The degradation from there to the input.
    """
    window, sizes = [slice(*side) for side in box], [stop - start for start, stop in box]
    products: dict[int, Array] = {}
    for axis, (matrix, side) in enumerate(zip(axis_matrices(target_shape, recipe), tuple(window), strict=True)):
        if matrix is not None:
            rows = np.flatnonzero(matrix[:, side].any(axis=1))
            window[axis] = slice(rows[0], rows[-1] + 1) if rows.size else slice(0)
            products[axis] = matrix[window[axis], side]
    order = sorted(products, key=lambda axis: products[axis].shape[0] / products[axis].shape[1])
    growing = [axis for axis in order[1:] if products[axis].shape[0] > products[axis].shape[1]]
    shrinking = [axis for axis in order if axis not in growing]
    for axis in shrinking:
        sizes[axis] = len(products[axis])
    if shrinking:
        sizes.insert(0, sizes.pop(shrinking[-1]))
    made, left = (tuple((axis, products[axis]) for axis in axes) for axes in (shrinking, growing))
    return Footprint(triple(window), triple(sizes), made, left)
