"""The QC page of a restored volume: one HTML file that opens offline, with a verdict, a viewer and what was done."""

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from configs.axes import FileShape
from tasks.artifacts.network_file import NetworkFile
from tasks.files.atomic import replacing
from tasks.scoring.quality import Seam, Spectrum, quality_warnings, seams, spectrum
from tasks.volume.grid import Grid, axis_codes
from tasks.volume.intensity import Intensity
from tasks.volume.scan import Voxels
from workflow.pages.index import SUMMARY, Summary
from workflow.pages.rendering import new_figure, png, render_page
from workflow.pages.verdict import Measure, artefact_measures, consistency_measure, verdict_of
from workflow.pages.viewer import THREADS, Layer, View, niivue, shown_layers, views

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 128
PAPER, INK, GRID_INK = "#14171a", "#d9dee3", "#333a41"  # the colours of `style.css`
CURVES = ("#6cb2ff", "#f0b429", "#5fb878")
UNIT = Intensity(0.0, 1.0)


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
        inferred: The restored volume less the consistent interpolation, where that is known.
        facts: Further information to show, by name.
        warnings: Warnings of earlier steps.
        unit: Values of the file that are 0 and 1 in the volumes.
        noise: Standard deviation of the input's noise, normalised, if it is known.
        measures: Further measures.
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
    inferred: Voxels | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    unit: Intensity = UNIT
    noise: float | None = None
    measures: Sequence[Measure] = ()

    @property
    def layers(self) -> list[Layer]:
        """The layers to look at; the first two are compared when the page opens."""
        given = {"input": self.before, "restored": self.restored, "truth": self.truth, "inferred": self.inferred}
        volumes = {name: voxels for name, voxels in given.items() if voxels is not None}

        @cache
        def shown(view: View, name: str) -> Voxels:
            return view.of(volumes[name])

        def difference(view: View, name: str, other: str) -> Voxels:
            return shown(view, name) - shown(view, other)

        layers = [
            Layer("input, cubic", partial(shown, name="input")),
            Layer("restored", partial(shown, name="restored")),
            Layer("restored − input", partial(difference, name="restored", other="input"), signed=True),
        ]
        if self.inferred is not None:
            layers.append(Layer("inferred detail", partial(shown, name="inferred"), signed=True))
        if self.truth is not None:
            layers += [
                Layer("truth", partial(shown, name="truth")),
                Layer("input − truth", partial(difference, name="input", other="truth"), signed=True),
                Layer("restored − truth", partial(difference, name="restored", other="truth"), signed=True),
            ]
        if self.consistency is not None:
            spread = partial(_in_view, self.consistency, self.input_grid, self.grid)
            layers.append(Layer("consistency", spread, signed=True))
        return layers

    @property
    def volumes(self) -> dict[str, Voxels]:
        """The volumes whose intensities are compared, by name."""
        truth = {} if self.truth is None else {"truth": self.truth}
        return {"input": self.before, "restored": self.restored, **truth}


def write_quality_page(path: Path, case: QualityCase) -> tuple[str, ...]:
    """Write a QC page; returns the warnings on it."""
    with ThreadPoolExecutor(THREADS) as pool:
        spectra = {
            name: list(pool.map(partial(spectrum, volume), range(3), case.strides))
            for name, volume in {"input": case.before, "restored": case.restored}.items()
        }
    found = seams(case.restored, case.before, case.borders)
    measures = [*case.measures, *artefact_measures(spectra["input"], spectra["restored"], found)]
    if case.consistency is not None:
        measures.append(consistency_measure(case.consistency, case.noise))
    verdict = verdict_of(measures, case.warnings)
    shown = {measure.name: round(measure.value, 6) for measure in measures}
    summary = Summary(verdict, _by(case.grid.shape), len(case.warnings), shown)
    chosen = views(case.grid, case.before)
    with ThreadPoolExecutor(1) as pool:
        plots = pool.submit(_plots, case, spectra, found)
        layers = shown_layers(case.layers, chosen, case.unit)
    page = render_page(
        "quality.html",
        title=case.title,
        meta=SUMMARY,
        summary=summary,
        warnings=case.warnings,
        measures=measures,
        facts={"made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", **case.facts},
        geometry={"input": _geometry(case.input_grid), "output": _geometry(case.grid)},
        errors=_errors(case),
        layers=layers,
        views=chosen,
        inverse=np.linalg.inv(case.grid.affine).tolist(),
        niivue=niivue(),
        plots=plots.result(),
    )
    with replacing(path) as written:
        written.write_text(page, encoding="utf-8")
    return (*case.warnings, *quality_warnings(spectra["restored"], found))


def model_facts(network: NetworkFile) -> dict[str, str]:
    """Describe a model by its digest and its card."""
    facts = {"model": f"SHA-256 {network.digest[:16]}…"}
    if (card := network.card) is not None:
        facts["trained for"] = (
            f"{card.degradation.name}, scale {_by(card.degradation.scale)} along depth, height, width"
        )
        facts["training"] = f"{card.steps} steps, seed {card.seed}"
    return facts


def on_finer_grid(coarse: Voxels, coarse_grid: Grid, grid: Grid) -> Voxels:
    """Spread a coarse volume over a finer grid, without interpolation; the first corner of both grids is the same."""
    return _at(coarse, coarse_grid, grid, [np.arange(size, dtype=np.float64) for size in grid.shape])


def _in_view(coarse: Voxels, coarse_grid: Grid, grid: Grid, view: View) -> Voxels:
    """The same, for what a view shows of the finer grid."""
    return _at(coarse, coarse_grid, grid, [view.places(axis) for axis in range(3)])


def _at(coarse: Voxels, coarse_grid: Grid, grid: Grid, places: Sequence[NDArray[np.float64]]) -> Voxels:
    """Return the coarse voxels in which indices of the finer grid lie."""
    indices = [
        np.minimum((fine + 0.5) * spacing // step, size - 1).astype(int)
        for fine, spacing, step, size in zip(places, grid.spacing, coarse_grid.spacing, coarse.shape, strict=True)
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


def _errors(case: QualityCase) -> dict[str, str]:
    if case.truth is None:
        return {}
    return {
        f"mean absolute error, {name}": f"{np.abs(volume - case.truth).mean():.5f}"
        for name, volume in {"input": case.before, "restored": case.restored}.items()
    }


def _plots(case: QualityCase, spectra: Mapping[str, Sequence[Spectrum]], found: Sequence[Seam]) -> str:
    """Draw histogram, spectra and seams, those that show something: a PNG in base64."""
    drawn = [axis for axis in range(3) if spectra["restored"][axis].amplitudes.size > 2]
    rows = [["intensities"] * 2 + (["seams"] if found else ["intensities"])]
    if drawn:
        # As wide as the row above, which has three columns.
        rows.append({1: ["i"] * 3, 2: ["i", "i", "j"], 3: ["i", "j", "k"]}[len(drawn)])
    figure = new_figure(figsize=(11.5, 3.2 * len(rows)), dpi=90, facecolor=PAPER)
    # Explicit margins: an automatic layout takes as long as all the drawing.
    margins = {"left": 0.06, "right": 0.98, "bottom": 0.24 / len(rows), "top": 0.94, "wspace": 0.22, "hspace": 0.36}
    places: dict[str, Axes] = figure.subplot_mosaic(rows, gridspec_kw=margins)
    _draw_histogram(places["intensities"], case)
    if found:
        _draw_seams(places["seams"], found)
    for name, axis in zip("ijk", drawn, strict=False):
        _draw_spectrum(places[name], spectra["input"][axis], spectra["restored"][axis])
    for axes in places.values():
        _colour(axes)
    return base64.b64encode(png(figure)).decode()


def _colour(axes: "Axes") -> None:
    """Give a plot the colours of the page."""
    axes.set_facecolor(PAPER)
    axes.tick_params(colors=INK)
    for spine in axes.spines.values():
        spine.set_color(GRID_INK)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(INK)
    if (legend := axes.get_legend()) is not None:
        legend.get_frame().set(facecolor=PAPER, edgecolor=GRID_INK)
        for label in legend.get_texts():
            label.set_color(INK)


def _draw_histogram(axes: "Axes", case: QualityCase) -> None:
    for (name, volume), colour in zip(case.volumes.items(), CURVES, strict=False):
        counts, edges = np.histogram(volume[volume > 0.02], bins=BINS, range=(0, 1.3))
        # Not `density=True`, which divides by zero where no voxel is in the range.
        axes.plot((edges[1:] + edges[:-1]) / 2, counts / max(counts.sum(), 1), label=name, linewidth=1, color=colour)
    axes.set(title="intensities of the foreground", xlabel="normalised intensity", yticks=[])
    axes.legend(fontsize=8)


def _draw_seams(axes: "Axes", found: Sequence[Seam]) -> None:
    for axis, colour in enumerate(CURVES):
        places = [(seam.place, seam.excess) for seam in found if seam.axis == axis]
        if places:
            axes.plot(*zip(*places, strict=True), "o", label="ijk"[axis], markersize=4, color=colour)
    axes.axhline(1, color=GRID_INK, linewidth=0.8)
    axes.set(title=f"step at {len(found)} shard borders", xlabel="voxel", ylabel="over that of the input")
    axes.set_ylim(0, max(2.0, *(seam.excess * 1.1 for seam in found)))
    axes.legend(fontsize=8)


def _draw_spectrum(axes: "Axes", before: Spectrum, after: Spectrum) -> None:
    for one, name, colour in ((before, "input", CURVES[0]), (after, "restored", CURVES[1])):
        axes.semilogy(one.frequencies[2:], one.amplitudes[2:], label=name, linewidth=1, color=colour)
    for order in range(1, after.stride // 2 + 1):
        axes.axvline(order / after.stride, color=GRID_INK, linewidth=0.8, linestyle=":")
    axes.set(title=f"roughness along {'ijk'[after.axis]}, stride {after.stride}", xlabel="cycles per voxel")
    axes.legend(fontsize=8)


def _by(values: Sequence[float]) -> str:
    return " × ".join(f"{value:.4g}" for value in values)
