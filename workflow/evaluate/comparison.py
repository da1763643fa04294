"""Comparison of runs: differing parameters, scores next to baselines, time and size; as table, CSV, picture, page."""

import base64
import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from configs.errors import InputError
from tasks.files.atomic import replacing
from workflow.pages.rendering import new_figure, png, render_page
from workflow.tracking.reading import RunRecord, read_curves, read_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = Mapping[str, Sequence[tuple[int, float]]]

MEASURES = ("psnr", "ssim")
# Metrics of which less is better have one of these in their name.
COSTS = ("seconds", "loss", "error", "rss", "consistency", "failed")
SIZE = "model/parameters"
CURVE = "train/loss"
# Label and line of each.
BASELINES = {"corrected": ("cubic with correction", "-."), "cubic": ("cubic", "--"), "trilinear": ("trilinear", ":")}
MAX_CURVES = 12


@dataclass(frozen=True)
class Row:
    """One run of a comparison.

    Args:
        run_id: Of the run.
        name: Of the run.
        status: How it ended.
        seconds: From start to end; None while it runs.
        size: Trainable weights of its model.
        parameters: Only those that differ between the runs; "" where a run has none of that name.
        scores: Its scores, such as "psnr/restored", and the metric that the runs are sorted by.
        metrics: All its metrics but those of the machine.
    """

    run_id: str
    name: str
    status: str
    seconds: float | None
    size: float | None
    parameters: Mapping[str, str]
    scores: Mapping[str, float]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Comparison of runs.

    Args:
        rows: The runs, the best first.
        sorted_by: The metric that they are sorted by; None for the order of time.
        differing: Names of the parameters that differ.
        scores: Names of the scores that at least one run has, and of the metric that the runs are sorted by.
        remarks: Why the scores may not be comparable.
    """

    rows: tuple[Row, ...]
    sorted_by: str | None
    differing: tuple[str, ...]
    scores: tuple[str, ...]
    remarks: tuple[str, ...]


def compare(runs: Sequence[RunRecord], sort: str | None = None) -> Comparison:
    """Compare runs.

    Args:
        runs: The runs.
        sort: A metric, or a part of its name: "psnr" is "psnr/restored", or "validation/psnr" where no run has that.
            Without it the runs stay in their order.

    Raises:
        InputError: There is nothing to compare, or no run has the metric.
    """
    if not runs:
        raise InputError("Cannot compare: there is no run.", "Record one, for example by `voxlift demo`.")
    names = sorted({name for run in runs for name in run.parameters})
    differing = tuple(name for name in names if len({run.parameters.get(name) for run in runs}) > 1)
    metrics = {name for run in runs for name in run.metrics}
    by = _metric(sort, metrics) if sort else None
    # "psnr/cubic" and "validation/psnr_cubic", not "volumes/psnr/cubic" or "train/loss".
    scores = sorted(name for name in metrics if name == by or name.removeprefix("validation/").startswith(MEASURES))
    ordered = sorted(runs, key=lambda run: _rank(run, by)) if by else runs
    return Comparison(
        rows=tuple(
            Row(
                run_id=run.run_id,
                name=run.name,
                status=run.status,
                seconds=run.seconds,
                size=run.metrics.get(SIZE),
                parameters={name: run.parameters.get(name, "") for name in differing},
                scores={name: run.metrics[name] for name in scores if name in run.metrics},
                metrics=run.metrics,
            )
            for run in ordered
        ),
        sorted_by=by,
        differing=differing,
        scores=tuple(scores),
        remarks=_remarks(runs),
    )


def _metric(sort: str, metrics: set[str]) -> str:
    """Find the metric that a name or a part of it refers to.

    >>> _metric("psnr", {"psnr/cubic", "psnr/restored"}), _metric("psnr", {"validation/psnr"})
    ('psnr/restored', 'validation/psnr')
    """
    for name in (sort, f"{sort}/restored", f"validation/{sort}"):
        if name in metrics:
            return name
    raise InputError(
        f"Cannot sort by {sort}: no run has that metric.", f"There are: {', '.join(sorted(metrics)) or 'none'}."
    )


def _rank(run: RunRecord, metric: str) -> tuple[bool, float]:
    """Sort the best run first, and runs without a finite value last."""
    value = run.metrics.get(metric, math.nan)
    return not math.isfinite(value), value if any(cost in metric for cost in COSTS) else -value


def _remarks(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    remarks = []
    recipes = sorted({run.tags["degradation"] for run in runs if "degradation" in run.tags})
    if len(recipes) > 1:
        remarks.append(f"scores of different degradations ({', '.join(recipes)}) do not compare: look at the baselines")
    if len({run.inputs for run in runs if run.inputs}) > 1:
        remarks.append("the runs worked on different volumes: look at the baselines")
    unfinished = sum(run.status != "FINISHED" for run in runs)
    if unfinished:
        remarks.append(f"{unfinished} of {len(runs)} runs did not finish")
    return tuple(remarks)


def as_csv(comparison: Comparison) -> str:
    """Write a comparison as a table of comma-separated values with a header."""
    metrics = sorted({name for row in comparison.rows for name in row.metrics})
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["run_id", "name", "status", "seconds", *comparison.differing, *metrics])
    for row in comparison.rows:
        seconds = "" if row.seconds is None else row.seconds
        values = [row.metrics.get(name, "") for name in metrics]
        writer.writerow([row.run_id, row.name, row.status, seconds, *row.parameters.values(), *values])
    return out.getvalue()


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
        folder: Created if it does not exist.
        comparison: Of the runs.
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
    start = metric.removesuffix("restored") if metric.endswith("/restored") else f"{metric.removesuffix('_best')}_"
    for baseline, (label, style) in BASELINES.items():
        values = {round(row.scores[name], 3) for row in rows if (name := start + baseline) in row.scores}
        # On different volumes the baselines differ, and no line stands for all.
        if len(values) == 1:
            axes.axhline(values.pop(), linestyle=style, color="gray", label=label, linewidth=1)
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
