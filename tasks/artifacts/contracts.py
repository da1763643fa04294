"""Contracts of artifacts, made from the target grid or the stage table before the artifact, never from its file.

A contract is checked against the file, read back; its messages name the axis that violates it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from configs.axes import AXES, TENSOR_AXES, FileShape, NetworkShape
from configs.errors import ContractError, ReadError, UsageError
from configs.frozen import Frozen
from tasks.artifacts.network_file import read_network
from tasks.files.trees import stored_size
from tasks.volume.grid import Grid
from tasks.volume.inspection import all_finite
from tasks.volume.nifti import open_volume, read_forward
from tasks.volume.scan import Header, Scan

# Share of a voxel by which a corner of the field of view may move: NIfTI stores affines as float32.
TOLERANCE = 0.01
MAGIC = {
    ".png": (b"\x89PNG\r\n\x1a\n", "PNG picture"),
    ".html": (b"<!doctype html>", "HTML page"),
}


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
    configs.errors.ContractError: the latent violates its contract: width must be 112, received 111.
    """

    axes: tuple[str, ...]
    shape: tuple[int | None, ...]
    dtype: str

    def require(self, what: str, shape: Sequence[int], dtype: str) -> None:
        """Check a tensor; `what` names it in the message.

        Raises:
            ContractError: It violates the contract; the message names the axis, the contract and what was received.
        """
        if len(shape) != len(self.axes):
            raise ContractError(
                f"{what} violates its contract: it must have the axes {', '.join(self.axes)}, "
                f"received the shape {tuple(shape)}."
            )
        for axis, size, received in zip(self.axes, self.shape, shape, strict=True):
            if size is not None and size != received:
                raise ContractError(f"{what} violates its contract: {axis} must be {size}, received {received}.")
        if dtype != self.dtype:
            raise ContractError(f"{what} violates its contract: its type must be {self.dtype}, received {dtype}.")


@dataclass(frozen=True)
class ReadBack:
    """A file as it was read back.

    Args:
        violations: Of its contract; empty where it satisfies it.
        sha256: Of its bytes; "" where it could not be read to the end.
        size: Bytes.
    """

    violations: Sequence[str]
    sha256: str = ""
    size: int = 0


class FileContract(Frozen):
    """Contract of a file that has only to begin as its suffix requires."""

    kind: Literal["file"] = "file"

    def read_back(self, path: Path) -> ReadBack:
        """Read a file once, and check that a picture or a page is one."""
        start, name = MAGIC.get(path.suffix, (b"", ""))
        with path.open("rb") as file:
            wrong = file.read(len(start)).lower() != start.lower()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return ReadBack([f"it is no {name}"] if wrong else [], digest, path.stat().st_size)


class VolumeContract(Frozen):
    """Contract of a volume.

    Args:
        shape: Voxels along (i, j, k).
        affine: 4x4, voxel → RAS+ mm.
        dtype: On disk.
        n_timepoints: Time points.
    """

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    kind: Literal["volume"] = "volume"
    shape: FileShape
    affine: tuple[tuple[float, float, float, float], ...]
    dtype: str
    n_timepoints: int = Field(1, alias="times")  # its key in contracts.json

    def read_back(self, path: Path, first: NDArray[np.float32] | None = None) -> ReadBack:
        """Read a file once, to its last byte.

        Args:
            path: The file.
            first: Filled with the voxels of the first time point, `[i, j, k]`, where sizes and geometry are right.
        """
        size = stored_size(path)
        try:
            scan = open_volume(path)
            violations = [*self._size_violations(scan), *self._geometry_violations(scan.grid, scan.header)]
            with read_forward(scan) as (forward, reader):
                try:
                    if not violations and not all_finite(forward, first):
                        violations = ["it has voxels that are NaN or infinite"]
                except ReadError as error:
                    violations = [error.reason]
                size_read, digest = reader.finish()
        except ReadError as error:
            return ReadBack([error.reason], size=size)
        if scan.data_bytes and size_read != scan.data_bytes:
            violations.append(f"it holds {size_read} bytes decompressed, its header declares {scan.data_bytes}")
        return ReadBack(violations, digest, size)

    def _size_violations(self, scan: Scan) -> list[str]:
        wanted = {**dict(zip("ijk", self.shape, strict=True)), "time points": self.n_timepoints, "its type": self.dtype}
        found = (*scan.grid.shape, scan.header.n_timepoints, scan.header.dtype.name)
        return [
            f"{what} must be {want}, received {have}"
            for (what, want), have in zip(wanted.items(), found, strict=True)
            if want != have
        ]

    def _geometry_violations(self, found: Grid, header: Header) -> list[str]:
        grid = Grid(self.shape, np.array(self.affine))
        violations = [
            f"spacing along {axis} must be {want:.6g} mm, {source} {have:.6g} mm"
            for source, spacing in (("received", found.spacing), ("the header's zooms say", header.zooms))
            for axis, want, have in zip("ijk", grid.spacing, spacing, strict=True)
            if not np.isclose(want, have, rtol=1e-4)
        ]
        # With the shape of the contract: a wrong shape is reported by its axis.
        moved = np.linalg.norm(Grid(self.shape, found.affine).corners() - grid.corners(), axis=1).max()
        if moved > TOLERANCE * min(grid.spacing):
            violations.append(f"its affine moves a corner of the field of view by {moved:.4g} mm")
        return violations


class ModelContract(Frozen):
    """Contract of a restorer: one channel in, one out, on the same grid, in multiples of its total stride.

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
        """Return the contract of input and output, for one shape of volume or, without it, for every shape."""
        return TensorContract(TENSOR_AXES, (batch, *(shape or (None, None, None)), self.channels), self.dtype)

    def read_back(self, path: Path) -> ReadBack:
        """Read a `.keras` file once, and check its layers without loading the model."""
        try:
            network = read_network(path)
        except UsageError as error:
            return ReadBack([error.reason if isinstance(error, ReadError) else error.problem])
        graph, strides = network.cost.graph, network.cost.field.strides
        entry = next(node for node in graph.nodes if node.kind == "InputLayer")
        violations = [
            f"channels of its {place} must be {self.channels}, received {node.channels}"
            for place, node in (("input", entry), ("output", graph.nodes[graph.output]))
            if node.channels != self.channels
        ] + [
            f"total stride along {axis} must be {want}, received {received}"
            for axis, want, received in zip(AXES, self.total_stride or strides, strides, strict=True)
            if want != received
        ]
        return ReadBack(violations, network.digest, len(network.content))


Contract = Annotated[FileContract | VolumeContract | ModelContract, Field(discriminator="kind")]


def volume_contract(grid: Grid, dtype: str, n_timepoints: int = 1) -> VolumeContract:
    """Return the contract of a volume on a grid."""
    rows = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in grid.affine)
    return VolumeContract(shape=grid.shape, affine=rows, dtype=dtype, n_timepoints=n_timepoints)
