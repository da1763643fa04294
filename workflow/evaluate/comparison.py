"""Comparison of runs: the parameters that differ, scores next to the baselines, time and size."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.errors import InputError
from workflow.tracking.reading import RunRecord

MEASURES = ("psnr", "ssim")
# Metrics of which less is better have one of these in their name.
COSTS = ("seconds", "loss", "error", "rss", "consistency", "failed")
SIZE = "model/parameters"


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
        scores: Metrics of the measures, by "psnr/restored" and the like, and the one that the runs are sorted by.
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
            Without it the runs keep their order.

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
    """Sort the best run first, and runs without a value last."""
    value = run.metrics.get(metric, math.nan)
    return math.isnan(value), value if any(cost in metric for cost in COSTS) else -value


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
