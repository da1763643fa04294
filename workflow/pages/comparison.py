"""A comparison of runs as a table in the terminal, a picture, and a page that opens offline."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from tasks.files.atomic import replacing
from workflow.evaluate.comparison import Comparison, as_csv, compare
from workflow.pages.rendering import new_figure, png, render_page
from workflow.tracking.reading import read_curves, read_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = Mapping[str, Sequence[tuple[int, float]]]
BASELINES = {"cubic": "--", "trilinear": ":"}
CURVE = "train/loss"
MAX_CURVES = 12


def compare_runs(
    experiment: str, runs: Sequence[str], sort: str | None, folder: Path | None
) -> tuple[Comparison, list[Path]]:
    """Compare runs of an experiment, as `compare`; with a folder, also write the comparison and return its files."""
    found = compare(read_runs(experiment, runs), sort)
    if folder is None:
        return found, []
    curves = read_curves([row.run_id for row in found.rows[:MAX_CURVES]], CURVE)
    return found, write_comparison(folder, found, curves)


def write_comparison(folder: Path, comparison: Comparison, curves: Curves) -> list[Path]:
    """Write a comparison as CSV, picture and HTML page.

    Args:
        folder: Made if it is missing.
        comparison: What to write.
        curves: The metric `CURVE` of some of its runs, (step, value) by run id.

    Returns:
        The files.
    """
    picture = _draw(comparison, curves)
    page = render_page(
        "comparison.html",
        comparison=comparison,
        picture=base64.b64encode(picture).decode(),
        columns=[*comparison.scores, *comparison.differing],
    )
    contents = {
        "comparison.csv": as_csv(comparison).encode(),
        "comparison.png": picture,
        "comparison.html": page.encode(),
    }
    for name, content in contents.items():
        with replacing(folder / name) as partial:
            partial.write_bytes(content)
    return [folder / name for name in contents]


def _draw(comparison: Comparison, curves: Curves) -> bytes:
    """Draw quality against time, and the curves."""
    figure = new_figure(figsize=(11, 4.5), dpi=110, layout="constrained")
    quality, progress = figure.subplots(1, 2)
    _draw_quality(quality, comparison)
    names = {row.run_id: row.name for row in comparison.rows}
    for run_id, curve in curves.items():
        progress.plot(*zip(*curve, strict=True), linewidth=1, label=f"{names[run_id]} {run_id[:6]}")
    progress.set(xlabel="step", ylabel=CURVE)
    if curves:
        progress.set_yscale("log")
        progress.legend(fontsize=7)
    return png(figure)


def _draw_quality(axes: "Axes", comparison: Comparison) -> None:
    wanted = ("psnr/restored", comparison.sorted_by, *comparison.scores)
    metric = next((name for name in wanted if name in comparison.scores), None)
    rows = [row for row in comparison.rows if metric in row.scores]
    axes.set(xlabel="seconds", ylabel=metric or "no score was recorded")
    if metric is None:
        return
    places = [(row.seconds or 0.0, row.scores[metric]) for row in rows]
    axes.scatter(*zip(*places, strict=True), zorder=3)
    for row, place in list(zip(rows, places, strict=True))[:20]:
        axes.annotate(row.run_id[:6], place, fontsize=7, textcoords="offset points", xytext=(4, 4))
    start = metric.removesuffix("restored") if metric.endswith("/restored") else f"{metric}_"
    for baseline, style in BASELINES.items():
        values = {round(row.scores[name], 3) for row in rows if (name := start + baseline) in row.scores}
        # On different volumes the baselines differ, and no line stands for all.
        if len(values) == 1:
            axes.axhline(values.pop(), linestyle=style, color="gray", label=baseline, linewidth=1)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def comparison_table(comparison: Comparison) -> list[RenderableType]:
    """Show a comparison in the terminal."""
    table = Table(title=f"sorted by {comparison.sorted_by}" if comparison.sorted_by else None, title_justify="left")
    for name in ("run", "name", "status"):
        table.add_column(name)
    for name in (*comparison.scores, "seconds", "weights"):
        table.add_column(name, justify="right")
    for name in comparison.differing:
        table.add_column(name)
    for row in comparison.rows:
        scores = [f"{row.scores[name]:.4g}" if name in row.scores else "" for name in comparison.scores]
        costs = ["" if value is None else f"{value:.0f}" for value in (row.seconds, row.size)]
        table.add_row(row.run_id[:8], row.name, row.status, *scores, *costs, *row.parameters.values())
    return [table, *comparison.remarks]
