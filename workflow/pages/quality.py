"""The QC page of a restored volume: one HTML file that opens offline, with slices and measures of quality."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.axes import FileShape
from tasks.files.atomic import replacing
from tasks.scoring.quality import Seam, Spectrum, quality_warnings, seams, spectrum
from tasks.volume.grid import Grid, axis_codes
from tasks.volume.scan import Voxels
from workflow.pages.rendering import new_figure, png, render_page
from workflow.pages.slices import SPREAD, plane_sprites

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 128


@dataclass(frozen=True, eq=False, repr=False)
class QualityCase:
    """Content of a QC page. Volumes are normalised, `[i, j, k]`, on the target grid unless stated otherwise.

    Args:
        title: Of the page; no name of a file.
        input_grid: Grid of the input.
        grid: The target grid.
        before: The input, interpolated by cubic B-splines.
        restored: The restored volume.
        strides: Total stride of the network along (i, j, k).
        borders: Of the shards: axis, and the voxel before which the border lies.
        truth: The reference, where there is one.
        consistency: On the input's grid: the restored volume degraded again, minus the input.
        facts: Further information to show, by name.
        warnings: Warnings of earlier steps.
    """

    title: str
    input_grid: Grid
    grid: Grid
    before: Voxels
    restored: Voxels
    strides: FileShape
    borders: Sequence[tuple[int, int]] = ()
    truth: Voxels | None = None
    consistency: Voxels | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def volumes(self) -> dict[str, Voxels]:
        """The volumes to compare, by name."""
        truth = {} if self.truth is None else {"truth": self.truth}
        return {"before": self.before, "restored": self.restored, **truth}


def write_quality_page(path: Path, case: QualityCase) -> tuple[str, ...]:
    """Write a QC page; returns the warnings on it."""
    spectra = {
        name: [spectrum(volume, axis, case.strides[axis]) for axis in range(3)]
        for name, volume in {"before": case.before, "restored": case.restored}.items()
    }
    found = seams(case.restored, case.before, case.borders)
    warnings = (*case.warnings, *quality_warnings(spectra["restored"], found))
    differences = {}
    if case.truth is not None:
        differences = {"error before": case.before - case.truth, "error": case.restored - case.truth}
    if case.consistency is not None:
        differences["consistency"] = on_finer_grid(case.consistency, case.input_grid, case.grid)
    layers = case.volumes | differences
    planes = plane_sprites(case.grid, layers, frozenset(differences))
    page = render_page(
        "quality.html",
        title=case.title,
        planes=planes,
        planes_data=[asdict(plane) for plane in planes],
        layers=list(layers),
        spread=SPREAD,
        warnings=warnings,
        facts=case.facts,
        geometry={"input": _geometry(case.input_grid), "output": _geometry(case.grid)},
        measures=_measures(case, spectra, found),
        picture=_picture(case, spectra, found),
    )
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return warnings


def on_finer_grid(coarse: Voxels, coarse_grid: Grid, grid: Grid) -> Voxels:
    """Spread a coarse volume over a finer grid, without interpolation; the first corner of both grids is the same."""
    indices = [
        np.minimum((np.arange(size) + 0.5) * fine // step, have - 1).astype(int)
        for size, have, fine, step in zip(grid.shape, coarse.shape, grid.spacing, coarse_grid.spacing, strict=True)
    ]
    return coarse[np.ix_(*indices)]


def _geometry(grid: Grid) -> dict[str, str]:
    view = [size * step for size, step in zip(grid.shape, grid.spacing, strict=True)]
    return {
        "voxels": _by(grid.shape),
        "spacing [mm]": _by(grid.spacing),
        "field of view [mm]": _by(view),
        "axes": axis_codes(grid),
        "first corner [mm]": ", ".join(f"{place:.3f}" for place in grid.corners()[0]),
        "last corner [mm]": ", ".join(f"{place:.3f}" for place in grid.corners()[-1]),
    }


def _measures(case: QualityCase, spectra: Mapping[str, Sequence[Spectrum]], found: Sequence[Seam]) -> dict[str, str]:
    measures = {
        f"periodic noise along {'ijk'[after.axis]}, period {after.stride}": f"{after.peak:.2f} (before: {was.peak:.2f})"
        for was, after in zip(spectra["before"], spectra["restored"], strict=True)
        if after.stride > 1
    }
    if found:
        worst = max(found, key=lambda seam: seam.excess)
        measures[f"largest step of {len(found)} shard borders"] = (
            f"{worst.excess:.2f} ({'ijk'[worst.axis]} {worst.place})"
        )
    if case.consistency is not None:
        measures["consistency with the input, RMS"] = f"{np.sqrt(np.mean(case.consistency**2)):.4f}"
    if case.truth is not None:
        for name, volume in {"before": case.before, "restored": case.restored}.items():
            measures[f"mean absolute error {name}"] = f"{np.abs(volume - case.truth).mean():.5f}"
    return measures


def _picture(case: QualityCase, spectra: Mapping[str, Sequence[Spectrum]], found: Sequence[Seam]) -> str:
    """Draw histogram, spectra and seams: a PNG in base64."""
    figure = new_figure(figsize=(11.5, 6.4), dpi=90, facecolor="#e8eaec")
    # Explicit margins: an automatic layout takes as long as all the drawing.
    margins = {"left": 0.06, "right": 0.98, "bottom": 0.08, "top": 0.94, "wspace": 0.22, "hspace": 0.32}
    rows = [["intensities", "intensities", "seams"], ["i", "j", "k"]]
    places: dict[str, Axes] = figure.subplot_mosaic(rows, gridspec_kw=margins)
    _draw_histogram(places["intensities"], case)
    _draw_seams(places["seams"], found)
    for axis, was, after in zip("ijk", spectra["before"], spectra["restored"], strict=True):
        _draw_spectrum(places[axis], was, after)
    for name in ("intensities", "i"):
        places[name].legend(fontsize=8)
    return base64.b64encode(png(figure)).decode()


def _draw_histogram(axes: "Axes", case: QualityCase) -> None:
    for name, volume in case.volumes.items():
        counts, edges = np.histogram(volume[volume > 0.02], bins=BINS, range=(0, 1.3))
        # Not `density=True`, which divides by zero where no voxel is in the range.
        axes.plot((edges[1:] + edges[:-1]) / 2, counts / max(counts.sum(), 1), label=name, linewidth=1)
    axes.set(title="intensities of the foreground", xlabel="normalised intensity", yticks=[])


def _draw_seams(axes: "Axes", found: Sequence[Seam]) -> None:
    for axis in range(3):
        places = [(seam.place, seam.excess) for seam in found if seam.axis == axis]
        if places:
            axes.plot(*zip(*places, strict=True), "o", label="ijk"[axis], markersize=4)
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set(title=f"step at {len(found)} shard borders", xlabel="voxel", ylabel="over that before restoring")
    if found:
        axes.set_ylim(0, max(2.0, *(seam.excess * 1.1 for seam in found)))
        axes.legend(fontsize=8)


def _draw_spectrum(axes: "Axes", before: Spectrum, after: Spectrum) -> None:
    for one, name in ((before, "before"), (after, "restored")):
        axes.semilogy(one.frequencies[2:], one.amplitudes[2:], label=name, linewidth=1)
    for order in range(1, after.stride // 2 + 1):
        axes.axvline(order / after.stride, color="gray", linewidth=0.6, linestyle=":")
    axes.set(title=f"roughness along {'ijk'[after.axis]}, stride {after.stride}", xlabel="cycles per voxel")


def _by(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)
