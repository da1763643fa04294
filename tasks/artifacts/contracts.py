"""Contracts of artifacts: set before the artifact is made, checked against the file that was written.

A contract is made from the target grid or the stage table, never from the file. It is checked against the file, read
back, and its messages say which axis departs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from configs.axes import AXES, TENSOR_AXES, FileShape, NetworkShape
from configs.errors import ContractError, ReadError, UsageError
from tasks.artifacts.network_file import read_network
from tasks.volume.grid import Grid
from tasks.volume.inspection import find_extent
from tasks.volume.nifti import open_volume, read_forward
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


@dataclass(frozen=True)
class TensorContract:
    """The contract of a tensor.

    Args:
        axes: Name of each axis.
        shape: Size of each axis, None where it is free.
        dtype: Name of the element type.

    >>> volume = TensorContract(("depth", "height", "width"), (None, 112, 112), "float32")
    >>> volume.require("the latent", (16, 112, 111), "float32")
    Traceback (most recent call last):
    ...
    configs.errors.ContractError: the latent departs from its contract: width must be 112, received 111.
    """

    axes: tuple[str, ...]
    shape: tuple[int | None, ...]
    dtype: str

    def require(self, what: str, shape: Sequence[int], dtype: str) -> None:
        """Check a tensor.

        Args:
            what: The tensor, as the message should name it.
            shape: Its shape.
            dtype: Name of its element type.

        Raises:
            ContractError: It is violated; the message names the axis, the contract and what was received.
        """
        if len(shape) != len(self.axes):
            raise ContractError(
                f"{what} departs from its contract: it must have the axes {', '.join(self.axes)}, "
                f"received the shape {tuple(shape)}."
            )
        for axis, output_contract, received in zip(self.axes, self.shape, shape, strict=True):
            if output_contract is not None and output_contract != received:
                raise ContractError(
                    f"{what} departs from its contract: {axis} must be {output_contract}, received {received}."
                )
        if dtype != self.dtype:
            raise ContractError(f"{what} departs from its contract: its type must be {self.dtype}, received {dtype}.")


@dataclass(frozen=True)
class ReadBack:
    """A file as it was read back.

    Args:
        violations: Of its contract; empty where it satisfies it.
        sha256: Of its bytes; "" where it could not be read to the end.
        size: Bytes.
    """

    violations: tuple[str, ...]
    sha256: str
    size: int


class FileContract(Frozen):
    """A file whose only rule is that it begins as its suffix says."""

    kind: Literal["file"] = "file"

    def read_back(self, path: Path) -> ReadBack:
        """Read a file once: a violation is a picture or a page that is none."""
        start, name = MAGIC.get(path.suffix, (b"", ""))
        with path.open("rb") as file:
            wrong = file.read(len(start)).lower() != start.lower()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return ReadBack((f"it is no {name}",) if wrong else (), digest, file.tell())


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

    def read_back(self, path: Path, first: NDArray[np.float32] | None = None) -> ReadBack:
        """Read a file once, to its last byte.

        Args:
            path: The file.
            first: Filled with the voxels of the first time point, `[i, j, k]`, where sizes and geometry are right.
        """
        size = path.stat().st_size
        try:
            scan = open_volume(path)
            said = [*self._size_violations(scan), *self._geometry_violations(scan.grid, scan.header)]
            with read_forward(scan) as (forward, reader):
                try:
                    if not said and find_extent(forward, first).not_finite:
                        said = ["it has voxels that are NaN or infinite"]
                except ReadError as error:
                    said = [error.reason]
                held, digest = reader.finish()
        except ReadError as error:
            return ReadBack((error.reason,), "", size)
        if held != scan.data_bytes:
            said = [*said, f"it holds {held} bytes decompressed, its header declares {scan.data_bytes}"]
        return ReadBack(tuple(said), digest, size)

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

    def read_back(self, path: Path) -> ReadBack:
        """Read a `.keras` file once, without loading the model: a violation is in its layers."""
        try:
            network = read_network(path)
        except ReadError as error:
            return ReadBack((error.reason,), "", 0)
        except UsageError as error:
            return ReadBack((error.problem,), "", 0)
        cost, graph = network.cost, network.cost.graph
        entry = next(node for node in graph.nodes if node.kind == "InputLayer")
        strides = cost.field.strides
        said = [
            f"channels of its {place} must be {self.channels}, received {node.channels}"
            for place, node in (("input", entry), ("output", graph.nodes[graph.output]))
            if node.channels != self.channels
        ] + [
            f"total stride along {axis} must be {want}, received {received}"
            for axis, want, received in zip(AXES, self.total_stride or strides, strides, strict=True)
            if want != received
        ]
        return ReadBack(tuple(said), network.digest, len(network.content))


Contract = Annotated[FileContract | VolumeContract | ModelContract, Field(discriminator="kind")]


def volume_contract(grid: Grid, dtype: str, times: int = 1) -> VolumeContract:
    """Return the contract of a volume on a grid, before it is computed."""
    rows = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in grid.affine)
    return VolumeContract(shape=grid.shape, affine=rows, dtype=dtype, times=times)
