"""Contracts of artifacts: set before the artifact is made, checked against the file that was written.

A contract is made from the target grid or the stage table, never from the file. It is checked against the file, read
back, and its messages say which axis departs.
"""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from configs.axes import AXES, TENSOR_AXES, FileShape, NetworkShape
from configs.errors import InputError
from tasks.artifacts.network_file import read_network
from tasks.artifacts.shape_contract import TensorContract
from tasks.files.compression import decompressed_size
from tasks.volume.grid import Grid
from tasks.volume.nifti import open_volume
from tasks.volume.scan import Header, Scan

# A corner of the field of view may move by this share of a voxel: NIfTI holds affines as float32.
TOLERANCE = 0.01
MAGIC = {
    ".png": (b"\x89PNG\r\n\x1a\n", "PNG picture"),
    ".html": (b"<!doctype html>", "HTML page"),
}


class Frozen(BaseModel):
    """A record that is read back as it was written."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileContract(Frozen):
    """A file whose only rule is that it begins as its suffix says."""

    kind: Literal["file"] = "file"

    def violations(self, path: Path) -> list[str]:
        """Say how a file departs: a picture or a page that is none."""
        start, name = MAGIC.get(path.suffix, (b"", ""))
        with path.open("rb") as file:
            return [] if file.read(len(start)).lower() == start.lower() else [f"it is no {name}"]


class VolumeContract(Frozen):
    """The contract of a volume.

    Args:
        shape: Voxels along (i, j, k).
        affine: 4x4, voxel → RAS+ mm.
        dtype: On disk.
        times: Time points.
    """

    kind: Literal["volume"] = "volume"
    shape: FileShape
    affine: tuple[tuple[float, float, float, float], ...]
    dtype: str
    times: int = 1

    @property
    def grid(self) -> Grid:
        """Grid of the voxels."""
        return Grid(self.shape, np.array(self.affine))

    def violations(self, path: Path) -> list[str]:
        """Read a file to its last byte and say how it departs."""
        try:
            scan = open_volume(path)
            held = decompressed_size(scan.data_path)
        except InputError as error:
            return [str(error).removeprefix(f"Cannot read {path.name}: ").rstrip(".")]
        said = [*self._size_violations(scan), *self._geometry_violations(scan.grid, scan.header)]
        if held != scan.data_bytes:
            said.append(f"it holds {held} bytes decompressed, its header declares {scan.data_bytes}")
        elif not said:
            said += self._voxel_violations(scan)
        return said

    def _size_violations(self, scan: Scan) -> list[str]:
        said = [
            f"{axis} must be {output_contract}, received {received}"
            for axis, output_contract, received in zip("ijk", self.shape, scan.grid.shape, strict=True)
            if output_contract != received
        ]
        if scan.header.times != self.times:
            said.append(f"time points must be {self.times}, received {scan.header.times}")
        if scan.header.dtype.name != self.dtype:
            said.append(f"its type must be {self.dtype}, received {scan.header.dtype.name}")
        return said

    def _geometry_violations(self, found: Grid, header: Header) -> list[str]:
        output_contract = self.grid
        said = [
            f"spacing along {axis} must be {want:.6g} mm, received {have:.6g} mm"
            for axis, want, have in zip("ijk", output_contract.spacing, found.spacing, strict=True)
            if not np.isclose(want, have, rtol=1e-4)
        ]
        said += [
            f"spacing along {axis} must be {want:.6g} mm, the header's zooms say {have:.6g} mm"
            for axis, want, have in zip("ijk", output_contract.spacing, header.zooms, strict=True)
            if not np.isclose(want, have, rtol=1e-4)
        ]
        # Of the shape in the contract: a wrong shape is reported by its axis.
        moved = np.linalg.norm(Grid(self.shape, found.affine).corners() - output_contract.corners(), axis=1).max()
        if moved > TOLERANCE * min(output_contract.spacing):
            said.append(f"its affine moves a corner of the field of view by {moved:.4g} mm")
        return said

    def _voxel_violations(self, scan: Scan) -> list[str]:
        for time in range(self.times):
            if not all(np.isfinite(slab).all() for slab in scan.slabs(time)):
                return ["it has voxels that are NaN or infinite"]
        return []


class ModelContract(Frozen):
    """The contract of a restorer: one channel in, one out, on the same grid, in multiples of its total stride.

    Args:
        total_stride: Along depth, height and width; None for any.
        channels: Of input and output.
        dtype: Of input and output.
    """

    kind: Literal["model"] = "model"
    total_stride: NetworkShape | None = None
    channels: int = 1
    dtype: str = "float32"

    def tensor(self, shape: NetworkShape | None = None, batch: int | None = None) -> TensorContract:
        """Return the contracts of input and output, for one volume shape or, without it, for all."""
        return TensorContract(TENSOR_AXES, (batch, *(shape or (None, None, None)), self.channels), self.dtype)

    def violations(self, path: Path) -> list[str]:
        """Read the layers of a `.keras` file, without loading it, and say how it departs."""
        try:
            cost = read_network(path).cost
        except ValueError as error:
            return [str(error).rstrip(".")]
        graph = cost.graph
        entry = next(node for node in graph.nodes if node.kind == "InputLayer")
        said = [
            f"channels of its {place} must be {self.channels}, received {node.channels}"
            for place, node in (("input", entry), ("output", graph.nodes[graph.output]))
            if node.channels != self.channels
        ]
        strides = cost.field.strides
        return said + [
            f"total stride along {axis} must be {output_contract}, received {received}"
            for axis, output_contract, received in zip(AXES, self.total_stride or strides, strides, strict=True)
            if output_contract != received
        ]


Contract = Annotated[FileContract | VolumeContract | ModelContract, Field(discriminator="kind")]


def volume_contract(grid: Grid, dtype: str, times: int = 1) -> VolumeContract:
    """Return the contract of a volume on a grid, before it is computed."""
    rows = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in grid.affine)
    return VolumeContract(shape=grid.shape, affine=rows, dtype=dtype, times=times)
