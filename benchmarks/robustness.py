"""Do no harm: `python -m benchmarks.robustness`, the shipped weights on scans made by every acquisition.

Every volume is degraded twofold along all axes, and into slices two to six times as thick, by each acquisition and by
noise, and restored twice: with nothing known, and with the acquisition given. PSNR stands next to cubic interpolation
and to cubic with the correction by the true acquisition. The volumes are the scans in the folder VOXLIFT_DATA or
../shared/data, on which nothing is trained. `--matrix 2x` or `--matrix thick` scores one of the two.
Writes `results/robustness-2x.md`, `robustness-thick.md` and the same as JSON; ends with status 1 if a cell with
nothing known is worse than cubic by more than 0.2 dB.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, minimum_filter

from configs.axes import NetworkShape
from configs.degradation import AxisDegradation, Degradation, Noise, isotropic, thick_slices
from tasks.artifacts.network_file import NetworkFile
from tasks.artifacts.shipped import shipped_network
from tasks.imaging.acquisition import default_acquisition
from tasks.imaging.consistency import consistent_interpolation, correct, noise_level
from tasks.imaging.degrade import degrade
from tasks.imaging.resample import resample
from tasks.imaging.through_plane import through_plane
from tasks.scoring.metrics import foreground_mask, psnr
from tasks.sharding.restore import Restorer, coarse_volume
from tasks.volume.grid import network_axes
from tasks.volume.inspection import find_spectra
from tasks.volume.intensity import CLIP, Intensity, find_intensity, normalise
from tasks.volume.nifti import open_volume

RESULTS = Path(__file__).parent / "results"
SCANS = ("MR_Gd", "FLAIR", "chris_PD", "CT_pitch", "pcasl")
STRIDE = 16  # of the networks along every axis, at most
WORST = -0.2  # dB over cubic
OUTSIDE = 0.05  # of the normalised intensity, beyond the local range
FWHM_TOLERANCE, FILLING_TOLERANCE = 0.2, 0.05
FWHM_OF_SINC = 1.207  # in voxels, of what k-space truncation makes of a point

TITLES = {
    "volume": "volume",
    "acquisition": "acquisition",
    "noise": "noise",
    "cubic": "cubic [dB]",
    "corrected": "cubic with correction",
    "default": "nothing known",
    "known": "known",
    "cubic_outside": "outside, cubic [%]",
    "default_outside": "outside, nothing known [%]",
    "fwhm": "FWHM",
    "fwhm_found": "FWHM found",
    "filling": "zero filling",
    "filling_found": "zero filling found",
}


def _isotropic() -> dict[str, Degradation]:
    axes = {
        "k-space": AxisDegradation(factor=2, profile="kspace"),
        "k-space, Hamming": AxisDegradation(factor=2, profile="kspace", apodisation="hamming"),
        "box": AxisDegradation(factor=2),
        "FWHM 1": AxisDegradation(factor=2, blur_fwhm=1),
        "FWHM 1.5": AxisDegradation(factor=2, blur_fwhm=1.5),
        "FWHM 2": AxisDegradation(factor=2, blur_fwhm=2),
        "FWHM 3": AxisDegradation(factor=2, blur_fwhm=3),
        "zero-filled by 1.5": AxisDegradation(factor=2, profile="kspace", zero_filling=1.5),
    }
    return {name: isotropic(name, axis) for name, axis in axes.items()}


def _thick() -> dict[str, Degradation]:
    found: dict[str, Degradation] = {}
    for factor in (2, 3, 4, 6):
        axes = {
            "box": AxisDegradation(factor=factor),
            "Gaussian": AxisDegradation(factor=factor, profile="gaussian"),
            "gap of 25 %": AxisDegradation(factor=factor, gap=0.25),
            "k-space": AxisDegradation(factor=factor, profile="kspace"),
        }
        found |= {f"{name}, {factor}x": thick_slices(f"{name}, {factor}x", axis) for name, axis in axes.items()}
    return found


@dataclass(frozen=True)
class Matrix:
    """Acquisitions and noise to score.

    Args:
        recipes: Without noise, by name.
        noise: Standard deviations, in normalised intensity.
        whole: Shapes are cropped to multiples of it.
    """

    recipes: dict[str, Degradation]
    noise: tuple[float, ...]
    whole: tuple[int, int, int]


MATRICES = {
    "2x": Matrix(_isotropic(), (0.0, 0.02, 0.05), (2, 2, 2)),
    "thick": Matrix(_thick(), (0.0, 0.03), (12, 1, 1)),
}

Voxels = NDArray[np.float32]


@dataclass(frozen=True)
class Cell:
    """Scores of one volume, acquisition and noise.

    PSNR is in dB over cubic, what leaves the local range of the truth in percent of the voxels of the foreground, the
    FWHM across the slices in slice distances, zero filling as reconstructed over acquired samples.
    """

    volume: str
    acquisition: str
    noise: float
    cubic: float
    corrected: float
    default: float
    known: float
    cubic_outside: float
    default_outside: float
    fwhm: float | None = None
    fwhm_found: float | None = None
    filling: float | None = None
    filling_found: float | None = None

    @property
    def filling_is_found(self) -> bool:
        """True if the zero filling was found and is within the tolerance."""
        found, true = self.filling_found or 1, self.filling or 1
        return found > 1 and abs(found / true - 1) <= FILLING_TOLERANCE

    @property
    def fwhm_is_near(self) -> bool:
        """True if the FWHM was found and is within the tolerance."""
        if self.fwhm is None or self.fwhm_found is None:
            return False
        return abs(self.fwhm_found / self.fwhm - 1) <= FWHM_TOLERANCE


def scans(matrix: Matrix, names: Sequence[str] = SCANS) -> Iterator[tuple[str, Voxels, float]]:
    """Real volumes that nothing is trained on: name, normalised voxels in network axes, lowest voxel of the file.

    Of a series it is the first time point.
    """
    folder = Path(os.environ.get("VOXLIFT_DATA", RESULTS.parents[2] / "shared" / "data"))
    for path in (folder / f"{name}.nii.gz" for name in names):
        if path.is_file():
            volume = open_volume(path).read()
            voxels = volume.voxels if volume.voxels.ndim == 3 else volume.voxels[..., 0]
            fine = network_axes(volume.grid).to_network(voxels)
            sizes = zip(fine.shape, matrix.whole, strict=True)
            fine = np.ascontiguousarray(fine[tuple(slice(size // whole * whole) for size, whole in sizes)])
            normal = normalise(fine, find_intensity(fine), clip=CLIP)
            yield path.name.removesuffix(".nii.gz"), normal, float(fine.min())


class Restoration:
    """A network on whole volumes, by the functions that workers use.

    Args:
        network: A restorer with a card.
    """

    def __init__(self, network: NetworkFile) -> None:
        if network.card is None:
            raise SystemExit(f"{network.name} carries no card: name a model trained by voxlift")
        self.trained_for = network.card.degradation
        self._needs_acquisition = network.needs_acquisition
        # TensorFlow is configured once for a process, and this one may have trained before.
        self._restorer = Restorer(network.name, network.content, None, network.flips)

    def __call__(self, coarse: Voxels, shape: NetworkShape, recipe: Degradation, certainty: float = 1.0) -> Voxels:
        """Restore a normalised volume that `recipe` has made, as far as is known, and correct it."""
        restored = self.uncorrected(coarse, shape, recipe, certainty)
        return correct(restored, coarse, recipe, noise=noise_level(coarse, shape, recipe)).voxels

    def uncorrected(self, coarse: Voxels, shape: NetworkShape, recipe: Degradation, certainty: float = 1.0) -> Voxels:
        """Restore a volume without the correction of the output."""
        known = recipe if self._needs_acquisition else None
        volume = coarse_volume(coarse, shape, Intensity(0, 1), known, certainty)
        depth, height, width = ((-STRIDE, size + STRIDE + -size % STRIDE) for size in shape)
        window = volume.input_window((depth, height, width))
        restored = window + volume.detail * (self._restorer.restored(window, volume.intensity) - window)
        inside = tuple(slice(STRIDE, STRIDE + size) for size in shape)
        return np.ascontiguousarray(restored[inside])


def cells(
    name: str,
    fine: Voxels,
    lowest: float,
    matrix: Matrix,
    restore: Restoration,
    expert: Callable[[Degradation], Restoration],
) -> Iterator[Cell]:
    """Score one normalised volume, `[depth, height, width]`, by every acquisition and noise.

    Args:
        name: Of the volume.
        fine: The volume.
        lowest: Voxel of its file.
        matrix: Acquisitions and noise.
        restore: The restoration that goes by any acquisition.
        expert: The restoration where the acquisition is known.
    """
    shape, mask = NetworkShape(*fine.shape), foreground_mask(fine)
    for acquisition, recipe in matrix.recipes.items():
        for sigma in matrix.noise:
            noise = Noise(kind="rician", sigma=sigma)
            coarse = degrade(fine, recipe.model_copy(update={"noise": noise}), 1)
            cubic = resample(coarse, shape)
            spectra = find_spectra(coarse, recipe.scale)
            through = None if recipe.is_isotropic else through_plane(coarse, recipe.depth.factor)
            assumed = default_acquisition(restore.trained_for, lowest, spectra, through)
            taken = assumed.degradation(shape, NetworkShape(*coarse.shape))
            by_default = expert(taken) if assumed.known else restore
            estimates = {
                "corrected": consistent_interpolation(coarse, shape, recipe, sigma),
                "default": by_default(coarse, shape, taken, assumed.certainty),
                "known": expert(recipe)(coarse, shape, recipe),
            }
            base = psnr(fine, cubic, mask)
            gains = {key: round(psnr(fine, voxels, mask) - base, 2) for key, voxels in estimates.items()}
            cell = Cell(
                volume=name,
                acquisition=acquisition,
                noise=sigma,
                cubic=round(base, 2),
                **gains,
                cubic_outside=_outside(fine, cubic, mask),
                default_outside=_outside(fine, estimates["default"], mask),
                fwhm=None if recipe.is_isotropic else _fwhm(recipe.depth),
                fwhm_found=None if through is None else through.fwhm,
                filling=recipe.depth.zero_filling if recipe.is_isotropic else None,
                filling_found=max(assumed.zero_filling) if recipe.is_isotropic else None,
            )
            print(cell, flush=True)
            yield cell


@cache
def shipped_expert(acquisition: Degradation) -> Restoration:
    """Restore by the network that ships for a known acquisition."""
    return Restoration(shipped_network(thick=not acquisition.is_isotropic, known=acquisition))


def score(name: str, network: NetworkFile) -> bool:
    """Score one matrix and write its table; returns whether no cell is much worse than cubic."""
    matrix, restore, found = MATRICES[name], Restoration(network), list[Cell]()
    for volume_name, fine, lowest in scans(matrix):
        found += cells(volume_name, fine, lowest, matrix, restore, shipped_expert)
    default = np.array([cell.default for cell in found])
    summary = (
        f"Nothing known, {len(found)} cells: worst {default.min():+.2f} dB, {np.mean(default < 0):.1%} below cubic,"
        f" mean {default.mean():+.2f} dB."
    )
    if name == "thick":
        sought = [cell for cell in found if cell.fwhm_found is not None]
        summary += (
            f" FWHM across the slices within {FWHM_TOLERANCE:.0%} in {sum(cell.fwhm_is_near for cell in found)} cells"
            f" of the {len(sought)} of enough slices to look for it."
        )
    else:
        filled = [cell for cell in found if (cell.filling or 1) > 1]
        false = sum((cell.filling_found or 1) > 1 for cell in found) - sum(
            (cell.filling_found or 1) > 1 for cell in filled
        )
        summary += (
            f" Zero filling found in {sum(cell.filling_is_found for cell in filled)} of the {len(filled)} cells that"
            f" have it, and in {false} others."
        )
    print(summary)
    _write(f"robustness-{name}", found, summary)
    return bool(default.min() >= WORST)


def _outside(fine: Voxels, voxels: Voxels, mask: NDArray[np.bool_]) -> float:
    """The share of voxels, in percent, that leave the range of the truth's 3x3x3 neighbours."""
    low, high = (extreme(fine, 3) for extreme in (minimum_filter, maximum_filter))
    beyond = np.maximum(low - voxels, voxels - high) > OUTSIDE
    return round(100 * float(beyond[mask].mean()), 2)


def _fwhm(axis: AxisDegradation) -> float:
    return FWHM_OF_SINC if axis.profile == "kspace" else 1 - axis.gap


def _write(name: str, found: list[Cell], summary: str) -> None:
    rows = [asdict(cell) for cell in found]
    columns = [key for key in TITLES if any(row[key] is not None for row in rows)]
    lines = [
        "# The shipped weights on scans made by every acquisition",
        "",
        f"Made by `python -m benchmarks.robustness` on {processor()}. Gains in dB over cubic. {summary}",
        "",
        f"| {' | '.join(TITLES[key] for key in columns)} |",
        f"|{' --- |' * len(columns)}",
        *(f"| {' | '.join('' if row[key] is None else str(row[key]) for key in columns)} |" for row in rows),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--matrix", choices=list(MATRICES), action="append")
    given = parser.parse_args()
    harmless = True
    for name in given.matrix or MATRICES:
        harmless &= score(name, shipped_network(thick=name == "thick"))
    if not harmless:
        raise SystemExit(f"worse than cubic by more than {-WORST} dB")


def processor() -> str:
    """Name the processor of this machine."""
    info = Path("/proc/cpuinfo")
    names = [line.split(": ")[1] for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0]}, {len(names)} threads" if names else platform.machine()


if __name__ == "__main__":
    main()
