"""Comparison of runs: differing parameters, scores next to baselines, time and size; as table, CSV, picture, page."""

import base64
import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from configs.errors import InputError
from tasks.files.atomic import replacing
from workflow.pages.rendering import new_figure, png, render_page
from workflow.tracking.reading import RunRecord, read_curves, read_pictures, read_runs
from workflow.tracking.store import opened_store

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
MAX_PICTURES = 6
MAX_PARAMETERS = 5  # of a run that the short table shows


@dataclass(frozen=True)
class Row:
    """One run of a comparison.

    Args:
        run_id: Of the run.
        name: Of the run.
        status: How it ended.
        started: Its start.
        seconds: From start to end; None while it runs.
        size: Trainable weights of its model.
        parameters: Only those that differ between the runs; "" where a run has none of that name.
        scores: Its scores, such as "psnr/restored", and the metric that the runs are sorted by.
        metrics: All its metrics but those of the machine.
    """

    run_id: str
    name: str
    status: str
    started: datetime
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
                started=datetime.fromtimestamp(run.started / 1000, UTC),
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
    fewer = sum(bool(run.metrics.get("failed")) for run in runs if "psnr/restored" in run.metrics)
    if fewer:
        remarks.append(f"volumes failed in {fewer} of {len(runs)} runs: their scores are means over the others")
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
    experiment: str, runs: Sequence[str], sort: str | None, folder: Path | None, *, every: bool = False
) -> tuple[Comparison, list[Path]]:
    """Compare runs of an experiment, as `compare`; with a folder, also write the comparison and return its files.

    Args:
        experiment: Its name.
        runs: Ids or names of runs, instead of all.
        sort: As in `compare`.
        folder: For the files.
        every: Whether all runs includes those that failed or were killed, and parents of other runs.
    """
    with opened_store("read runs") as client:
        records = read_runs(client, experiment, runs)
        kept = records if every or runs else _worth_comparing(records)
        if records and not kept:
            raise InputError(
                f"Cannot compare: none of the {len(records)} runs of {experiment} has finished.",
                "Show them with --all-runs.",
            )
        found = compare(kept, sort)
        if left := len(records) - len(kept):
            remark = (
                f"left out: {left} of {len(records)} runs (failed, killed, or parents of others); --all-runs shows them"
            )
            found = replace(found, remarks=(*found.remarks, remark))
        if folder is None:
            return found, []
        with_curve = [row.run_id for row in found.rows[:MAX_CURVES] if CURVE in row.metrics]
        by_id = {record.run_id: record for record in kept}
        curves = read_curves(client, with_curve, CURVE)
        pictures = read_pictures(client, [by_id[row.run_id] for row in found.rows[:MAX_PICTURES]])
    return found, write_comparison(folder, found, curves, pictures)


def _worth_comparing(runs: Sequence[RunRecord]) -> list[RunRecord]:
    """Leave out runs that failed or were killed, and runs that only hold others together."""
    parents = {run.parent for run in runs}
    return [run for run in runs if run.status in {"FINISHED", "RUNNING"} and run.run_id not in parents]


def write_comparison(
    folder: Path, comparison: Comparison, curves: Curves, pictures: Mapping[str, bytes] | None = None
) -> list[Path]:
    """Write a comparison as CSV, picture and HTML page.

    Args:
        folder: Created if it does not exist.
        comparison: Of the runs.
        curves: The metric `CURVE` of some of its runs, (step, value) by run id.
        pictures: Planes of the volumes of some of its runs, as PNG by run id.

    Returns:
        The files; no picture where the runs have neither a score nor a curve.
    """
    picture = _draw(comparison, curves)
    page = render_page(
        "comparison.html",
        comparison=comparison,
        picture=_inlined(picture),
        pictures={run_id: _inlined(planes) for run_id, planes in (pictures or {}).items()},
    )
    contents = {
        "comparison.csv": as_csv(comparison).encode(),
        "comparison.png": picture,
        "comparison.html": page.encode(),
    }
    written = []
    for name, content in contents.items():
        if content is not None:
            with replacing(folder / name) as partial:
                partial.write_bytes(content)
            written.append(folder / name)
    return written


def _inlined(picture: bytes | None) -> str | None:
    return None if picture is None else base64.b64encode(picture).decode()


def _draw(comparison: Comparison, curves: Curves) -> bytes | None:
    """Draw quality against time, and the curves; None where there is neither."""
    metric = _drawn_metric(comparison)
    plots = (metric is not None) + bool(curves)
    if not plots:
        return None
    figure = new_figure(figsize=(5.5 * plots, 4.5), dpi=110, layout="constrained")
    axes = iter(figure.subplots(1, plots, squeeze=False)[0])
    if metric is not None:
        _draw_quality(next(axes), comparison, metric)
    if curves:
        progress, names = next(axes), {row.run_id: row.name for row in comparison.rows}
        for run_id, curve in curves.items():
            progress.plot(*zip(*curve, strict=True), linewidth=1, label=f"{names[run_id]} {run_id[:6]}")
        progress.set(xlabel="step", ylabel=CURVE, yscale="log")
        progress.legend(fontsize=7)
    return png(figure)


def _drawn_metric(comparison: Comparison) -> str | None:
    wanted = ("psnr/restored", comparison.sorted_by, *comparison.scores)
    return next((name for name in wanted if name in comparison.scores), None)


def _draw_quality(axes: "Axes", comparison: Comparison, metric: str) -> None:
    rows = [row for row in comparison.rows if metric in row.scores]
    axes.set(xlabel="seconds", ylabel=metric)
    places = [(row.seconds or 0.0, row.scores[metric]) for row in rows]
    axes.scatter(*zip(*places, strict=True), zorder=3)
    for row, place in list(zip(rows, places, strict=True))[:20]:
        axes.annotate(row.run_id[:6], place, fontsize=7, textcoords="offset points", xytext=(4, 4))
    for baseline, (label, style) in BASELINES.items():
        values = {round(row.scores[name], 3) for row in rows if (name := _baseline(metric, baseline)) in row.scores}
        # On different volumes the baselines differ, and no line stands for all.
        if len(values) == 1:
            axes.axhline(values.pop(), linestyle=style, color="gray", label=label, linewidth=1)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def comparison_table(comparison: Comparison, width: int | None = None) -> list[RenderableType]:
    """Show a comparison in the terminal.

    Args:
        comparison: Of the runs.
        width: Of the terminal, to show all metrics and parameters that differ, a column for each run. Without it, a row
            for each run shows what distinguishes it and its scores, in 80 columns.
    """
    tables = [_short_table(comparison)] if width is None else _full_tables(comparison, width)
    hidden = len(comparison.differing) - MAX_PARAMETERS
    more = [f"{hidden} more parameters differ; --all-columns shows them"] if width is None and hidden > 0 else []
    return [*tables, *comparison.remarks, *more]


def _title(comparison: Comparison) -> str | None:
    return f"best {comparison.sorted_by} first" if comparison.sorted_by else None


def _short_table(comparison: Comparison) -> Table:
    table = Table(title=_title(comparison), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    metric = comparison.sorted_by or _drawn_metric(comparison)
    # What all runs have comes before what only some have.
    known = sorted(comparison.differing, key=lambda name: sum(row.parameters[name] == "" for row in comparison.rows))
    shown = known[:MAX_PARAMETERS]
    cubic = metric is not None and any(_over_cubic(row, metric) for row in comparison.rows)
    table.add_column("run", no_wrap=True)
    table.add_column("name")
    if shown:
        table.add_column("differs")
    for name in ([metric.replace("/", "/\n")] if metric else []) + (["over\ncubic"] if cubic else []) + ["s"]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        name = row.name if row.status == "FINISHED" else f"{row.name}\n{row.status}"
        cells: list[str | Text] = [row.run_id[:8], Text(name)]
        if shown:
            cells.append(Text("\n".join(f"{key} {row.parameters[key]}" for key in shown if row.parameters[key])))
        if metric:
            cells.append(f"{row.metrics[metric]:.4g}" if metric in row.metrics else "")
        if cubic:
            cells.append(_over_cubic(row, metric) if metric else "")
        table.add_row(*cells, "" if row.seconds is None else f"{row.seconds:.0f}")
    return table


def _over_cubic(row: Row, metric: str) -> str:
    """The difference of a score to that of cubic interpolation of the same run, "" where there is none."""
    baseline = _baseline(metric, "cubic")
    if metric == baseline or metric not in row.metrics or baseline not in row.metrics:
        return ""
    return f"{row.metrics[metric] - row.metrics[baseline]:+.3g}"


def _baseline(metric: str, name: str) -> str:
    """Name of the metric of a baseline.

    >>> _baseline("psnr/restored", "cubic"), _baseline("validation/psnr_best", "cubic")
    ('psnr/cubic', 'validation/psnr_cubic')
    """
    start = metric.removesuffix("restored") if metric.endswith("/restored") else f"{metric.removesuffix('_best')}_"
    return start + name


def _full_tables(comparison: Comparison, width: int) -> list[Table]:
    """Show a column for each run, in as many tables as the width needs: first what differs, then all metrics."""
    metrics = sorted({name for row in comparison.rows for name in row.metrics} - set(comparison.scores))
    names = ["name", "status", "started", *comparison.differing, *comparison.scores, "seconds", *metrics]
    together = max((width - max(map(len, names)) - 2) // 19, 1)
    tables = []
    for first in range(0, len(comparison.rows), together):
        rows = comparison.rows[first : first + together]
        table = Table(box=SIMPLE_HEAD, pad_edge=False, title=_title(comparison), title_justify="left")
        table.add_column("run", no_wrap=True)
        columns = []
        for row in rows:
            table.add_column(row.run_id[:8], justify="right")
            known = {"name": row.name, "status": row.status, "started": f"{row.started:%Y-%m-%d %H:%M}"}
            figures = {"seconds": row.seconds, **row.metrics}
            texts = {name: f"{value:.4g}" for name, value in figures.items() if value is not None}
            columns.append(known | texts | dict(row.parameters))
        for name in names:
            table.add_row(name, *(Text(column.get(name, "")) for column in columns))
        tables.append(table)
    return tables
