"""The JSON file next to an output: its provenance in the terms of BIDS derivatives."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_pascal

from tasks.files.atomic import replacing
from tasks.machine.versions import installed_versions


def _bids_key(name: str) -> str:
    return to_pascal(name).replace("Mlflow", "MLflow")


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


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Write a sidecar under a temporary name and rename it into place."""
    with replacing(path) as partial:
        partial.write_text(sidecar.model_dump_json(by_alias=True, indent=2, exclude_none=True) + "\n")
