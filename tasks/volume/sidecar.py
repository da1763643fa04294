"""The JSON file next to a volume, in the terms of BIDS: the acquisition of an input, the provenance of an output."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_pascal

from configs.errors import ReadError
from configs.precision import Precision
from tasks.files.atomic import replacing
from tasks.files.outputs import sidecar_name
from tasks.imaging.acquisition import ScannerRecord
from tasks.machine.versions import installed_versions

MAX_SIDECAR = 1 << 20  # bytes
MAX_REASON = 300  # characters


def _bids_key(name: str) -> str:
    return to_pascal(name).replace("Mlflow", "MLflow").replace("Psnr", "PSNR")


class _PascalCased(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=_bids_key, populate_by_name=True)


class Generator(_PascalCased):
    """Name and version of the program that made a file."""

    name: str = "voxlift"
    version: str = Field(default_factory=lambda: installed_versions("voxlift")["voxlift"])


class Sidecar(_PascalCased):
    """Sidecar of a restored volume; keys in Pascal case, as in BIDS.

    Args:
        sources: Names of the input files, without folders.
        resolution: The grid, in words.
        generated_by: The programs.
        model_digest: SHA-256 of the model.
        mlflow_run: Id of the run.
        scale: Target voxels per voxel along (i, j, k).
        input_shape: Voxels of the input, with time points if there are several.
        output_shape: Voxels of the output.
        input_spacing: mm along (i, j, k).
        output_spacing: mm along (i, j, k).
        intensity: The values that were 0 and 1 to the network; of each time point, if there are several.
        consistency: Error of the output, degraded again, against the input; normalised intensity.
        warnings: From the inspection of the input and the model card.
        acquisition: What the input was taken to be, and why.
        outside_range: Share of the voxels that are outside the input's range by more than a twentieth of it.
        inferred_share: Energy of the inferred detail over that of all detail beyond cubic interpolation, from 0 to 1,
            if the inferred detail was written.
        precision: In which the network computed; None for a label map.
        precision_psnr: Of it against float32 in the middle of the volume, dB of the intensity range.
    """

    sources: tuple[str, ...]
    resolution: str
    generated_by: tuple[Generator, ...] = (Generator(),)
    model_digest: str | None = None
    mlflow_run: str | None = None
    scale: tuple[float, float, float]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    input_spacing: tuple[float, float, float]
    output_spacing: tuple[float, float, float]
    intensity: tuple[float, float] | tuple[tuple[float, float], ...] | None = None
    consistency: float | None = None
    warnings: tuple[str, ...] = ()
    acquisition: str | None = None
    outside_range: float | None = None
    inferred_share: float | None = None
    precision: Precision | None = None
    precision_psnr: float | None = None


class _ScannerKeys(BaseModel):
    """The keys of a raw BIDS sidecar that say how the slices were made; all others are left out."""

    model_config = ConfigDict(frozen=True)

    SliceThickness: float | None = Field(None, gt=0, allow_inf_nan=False)
    MRAcquisitionType: Literal["1D", "2D", "3D"] | None = None


def read_scanner_record(volume: Path) -> ScannerRecord:
    """Read what the scanner recorded of a volume in the JSON file next to it.

    Args:
        volume: The volume's file, whether its sidecar is there or not.

    Raises:
        ReadError: The sidecar is there and is no JSON object with values of the types that BIDS gives these keys.
    """
    path = volume.with_name(sidecar_name(volume.name))
    if not path.is_file():
        return ScannerRecord()
    try:
        if path.stat().st_size > MAX_SIDECAR:
            raise ValueError(f"it holds more than {MAX_SIDECAR} bytes")
        keys = _ScannerKeys.model_validate_json(path.read_bytes())
    except (OSError, ValueError, ValidationError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]
        raise ReadError(f"the sidecar {path.name}", reason, "Correct it, or remove it.") from error
    return ScannerRecord(
        keys.SliceThickness, None if keys.MRAcquisitionType is None else keys.MRAcquisitionType == "3D"
    )


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Write a sidecar under a temporary name and rename it into place."""
    with replacing(path) as partial:
        partial.write_text(sidecar.model_dump_json(by_alias=True, indent=2, exclude_none=True) + "\n")
