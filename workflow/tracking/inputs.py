"""Input volumes of a run as MLflow's dataset inputs: digest and geometry, without name or path."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.axes import FileShape
from configs.errors import ReadError
from tasks.files.trees import file_digest
from tasks.volume.grid import axis_codes
from tasks.volume.nifti import open_single_volume
from tasks.volume.scan import Scan
from workflow.tracking import mlflow_api

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

DIGEST_LENGTH = 36  # MLflow's limit


@dataclass(frozen=True)
class InputVolume:
    """A volume that went into a run.

    Args:
        role: "training", "validation", "reference" or "input".
        sha256: Of the file; of both digests where header and voxels are separate files.
        shape: Voxels along (i, j, k).
        spacing: mm along (i, j, k).
        axes: Directions in which i, j and k grow, such as "RAS".
        dtype: On disk.
        path: Of the file, only if paths may be recorded.
    """

    role: str
    sha256: str
    shape: FileShape
    spacing: tuple[float, float, float]
    axes: str
    dtype: str
    path: str | None = None


def input_volume(path: Path, role: str, *, record_paths: bool) -> InputVolume:
    """Describe a volume by its file: the digest of its bytes and its header.

    Raises:
        InputError: The file cannot be read.
    """
    scan = open_single_volume(path)
    try:
        digests = [file_digest(file) for file in scan.files]
    except OSError as error:  # it was there a moment ago
        raise ReadError(path.name, error.strerror or "it is gone", "Check the file.") from error
    return described_volume(scan, digests, role, record_paths=record_paths)


def described_volume(scan: Scan, digests: Sequence[str], role: str, *, record_paths: bool) -> InputVolume:
    """Describe a volume by its header and the digest of each of its files."""
    one_file = len(digests) == 1
    return InputVolume(
        role=role,
        sha256=digests[0] if one_file else hashlib.sha256("".join(digests).encode()).hexdigest(),
        shape=scan.grid.shape,
        spacing=scan.grid.spacing,
        axes=axis_codes(scan.grid),
        dtype=scan.header.dtype.name,
        path=str(scan.path) if record_paths else None,
    )


def dataset_input(volume: InputVolume) -> "DatasetInput":
    """Return the input as MLflow shows it on the run's page."""
    tensor = mlflow_api.Schema([mlflow_api.TensorSpec(np.dtype(volume.dtype), volume.shape)])
    known = asdict(volume)
    dataset = mlflow_api.Dataset(
        name="x".join(map(str, volume.shape)) + f" {volume.axes}",
        digest=volume.sha256[:DIGEST_LENGTH],
        source_type="file",
        source=json.dumps({key: known[key] for key in ("sha256", "path") if known[key]}),
        schema=json.dumps({"mlflow_tensorspec": {"features": tensor.to_json(), "targets": None}}),
        profile=json.dumps({key: known[key] for key in ("shape", "spacing", "axes", "dtype")}),
    )
    return mlflow_api.DatasetInput(dataset, [mlflow_api.InputTag("mlflow.data.context", volume.role)])
