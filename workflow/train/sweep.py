"""Sweep: trainings as Ray tasks, a parent run with a child run for each, and their comparison at the end."""

import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from threading import Event
from typing import Any

import yaml
from rich.console import Console, RenderableType

from configs.errors import ConfigError, ReadError
from configs.load import flatten, load_sweep
from configs.schema import RunConfig
from tasks.files.atomic import replacing
from workflow.cluster import cluster
from workflow.evaluate.comparison import CURVE, Comparison, Row, compare, comparison_table, write_comparison
from workflow.terminal.progress import entering, progress_bar
from workflow.tracking import Recorder, RunAddress, recorded_run, register_model
from workflow.tracking.provenance import ENVIRONMENT, record_environment, without_paths
from workflow.tracking.reading import read_curves, read_runs
from workflow.tracking.registry import model_of_run
from workflow.tracking.store import StoreError, opened_store
from workflow.tracking.upload import WaitingRecord, upload_below
from workflow.train.data import ranking_parts
from workflow.train.run import ADDRESS, SCORE, TrainReport, only_writer, resumable_run, run_train

SWEEP = "sweep.json"
KEY = "sweep"
MAX_TRAININGS = 500


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Args:
        number: From 1.
        settings: Its varied keys, each `section.key=value`.
    """

    number: int
    settings: tuple[str, ...]


@dataclass(frozen=True)
class ChildReport(Trial):
    """Outcome of one training.

    Args:
        status: "done", "kept" (an earlier start had finished it) or "failed".
        run_id: Of its run; None if it failed before it had one.
        error: Why it failed.
    """

    status: str
    run_id: str | None
    error: str | None = None


@dataclass(frozen=True)
class SweepReport:
    """Outcome of a sweep.

    Args:
        run_id: Of the parent run.
        children: Its trainings.
        comparison: Of those that finished; None if none did.
        files: The comparison as CSV, picture and page.
    """

    run_id: str
    children: tuple[ChildReport, ...]
    comparison: Comparison | None
    files: tuple[Path, ...]


def run_sweep(
    name: str,
    overrides: Sequence[str],
    folder: Path,
    *,
    parallel: int,
    resume: bool,
    console: Console,
    overwrite: bool = False,
) -> SweepReport:
    """Train every trial of a sweep.

    Args:
        name: A YAML file with a section `sweep`.
        overrides: Of every training, each `section.key=value`.
        folder: Holds a folder for each training, named by its number.
        parallel: Trainings at a time; each waits until the cluster has room for it.
        resume: Keep the trainings that have finished, and continue the others.
        console: For progress.
        overwrite: Whether an earlier sweep in the folder may be lost.

    Raises:
        ConfigError: A configuration is wrong, its trainings cannot be ranked, or the sweep to resume varies something
            else.
        InputError: The folder or the tracking store cannot be used.
    """
    varied, configured = load_sweep(name)
    trials = all_trials(varied)
    configs = {trial: configured([*overrides, *trial.settings]) for trial in trials}
    names = {trial: _name(trial, config) for trial, config in configs.items()}
    _require_comparable(list(configs.values()))
    tracking = configs[trials[0]].tracking
    with only_writer(folder, (SWEEP,), resume=resume, overwrite=overwrite) as lock:
        if resume:
            upload_below([folder])
        parent = _parent(folder, trials) if resume else None
        finished = _finished(folder, trials) if parent else set()
        stop = Event()
        title, killed = f"sweep of {len(trials)}", lock.killed if resume else None
        run = recorded_run(tracking.experiment, title, parent, killed=killed, folder=folder, console=console)
        with (
            entering(console, "Opening the tracking store", run) as recorder,
            entering(console, "Starting Ray", cluster()),
        ):
            if not recorder.holds(ENVIRONMENT):
                record_environment(recorder, "sweep")
                recorder.parameters({"trainings": str(len(trials)), "varied": ", ".join(varied)})
            recorder.address.write(folder / ADDRESS)
            with replacing(folder / SWEEP) as partial:
                partial.write_text(json.dumps({"trials": [trial.settings for trial in trials]}))

            def trained(trial: Trial) -> TrainReport:
                return run_train(
                    configs[trial],
                    folder / str(trial.number),
                    resume=resume,
                    overwrite=overwrite,
                    start_from=None,
                    console=Console(quiet=True),
                    name=names[trial],
                    parent=recorder.address.run_id,
                    stop=stop,
                )

            errors: dict[Trial, str] = {}
            with (
                progress_bar(console, "Trainings", len(trials) - len(finished), "training") as advance,
                ThreadPoolExecutor(parallel) as pool,
            ):
                futures = {pool.submit(trained, trial): trial for trial in trials if trial not in finished}
                try:
                    for done in as_completed(futures):
                        trial = futures[done]
                        if error := done.exception():
                            errors[trial] = " ".join(str(error).split())[:300] or type(error).__name__
                        outcome = f"failed, {errors[trial]}" if error else "done"
                        console.print(f"{names[trial]}: {outcome}", markup=False)
                        advance(f"{len(errors)} failed" if errors else "")
                except BaseException:
                    # Only this thread receives a signal: it stops the trainings and waits until they have ended.
                    stop.set()
                    pool.shutdown(cancel_futures=True)
                    raise
            waiting = upload_below([folder / str(trial.number) for trial in trials]).waiting
            children = tuple(
                ChildReport(
                    **vars(trial),
                    status="kept" if trial in finished else "failed" if trial in errors else "done",
                    run_id=_run_id(folder, trial),
                    error=errors.get(trial),
                )
                for trial in trials
            )
            comparison: Comparison | None = None
            files: tuple[Path, ...] = ()
            try:
                _require_recorded(waiting)
                comparison, files = _compared(children, folder, recorder)
                if comparison is not None and (first := _best(comparison)) is not None:
                    best = replace(recorder.address, run_id=first.run_id)
                    register_model(best, model_of_run(best.run_id), tracking.registered_model)
            except StoreError as error:
                console.print(
                    f"The trainings are not compared: {error.problem} Compare them once the store can be written, with"
                    f" `voxlift sync {folder}` and then this command with --resume.",
                    markup=False,
                )
        return SweepReport(recorder.address.run_id, children, comparison, files)


def all_trials(varied: Mapping[str, Any]) -> list[Trial]:
    """Make every combination of the values of the varied keys.

    Args:
        varied: By `section.key`: a list of values, or a range `{from: 0.001, to: 0.004, steps: 3}`, with `log: true`
            by equal factors instead of equal differences.

    Raises:
        ConfigError: No key is varied, a key has neither a list nor a range, or there are too many combinations.

    >>> [trial.settings for trial in all_trials({"training.seed": [0, 1]})]
    [('training.seed=0',), ('training.seed=1',)]
    >>> all_trials({"training.learning_rate": {"from": 0.001, "to": 0.004, "steps": 3, "log": True}})[1].settings
    ('training.learning_rate=0.002',)
    """
    axes = [[f"{key}={_text(value)}" for value in _values(key, given)] for key, given in varied.items()]
    if not axes:
        raise ConfigError(f"Cannot sweep: the section {KEY} of the configuration names no key to sweep over.")
    _require_few(prod(map(len, axes)))
    return [Trial(number, settings) for number, settings in enumerate(product(*axes), start=1)]


def _require_few(trainings: int) -> None:
    if trainings > MAX_TRAININGS:
        raise ConfigError(f"Cannot sweep: {trainings} trainings are more than {MAX_TRAININGS}.", "Vary less at a time.")


def _values(key: str, given: Any) -> Sequence[Any]:  # noqa: ANN401 - whatever YAML holds
    if isinstance(given, list) and given:
        return given
    if isinstance(given, Mapping) and set(given) - {"log"} == {"from", "to", "steps"}:
        low, high, steps, log = given["from"], given["to"], given["steps"], given.get("log", False)
        numbers = all(isinstance(value, int | float) for value in (low, high)) and isinstance(steps, int)
        if numbers and steps >= 2 and (not log or low > 0 < high):
            _require_few(steps)
            shares = [place / (steps - 1) for place in range(steps)]
            values = [low * (high / low) ** share if log else low + (high - low) * share for share in shares]
            whole = isinstance(low, int) and isinstance(high, int)
            return [round(value) if whole else float(f"{value:.6g}") for value in values]
    raise ConfigError(
        f"Cannot sweep over {key}: give a list of values, or a range such as {{from: 0.001, to: 0.004, steps: 3}} (with"
        f" log: true for equal factors), received {given!r}."
    )


def _text(value: Any) -> str:  # noqa: ANN401 - whatever YAML holds
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...").strip()


def saved(folder: Path) -> str:
    """Say what of the sweep in a folder is saved."""
    return f"The trainings that are done, and the checkpoints of the others, are in {folder}."


def summary(report: SweepReport) -> list[RenderableType]:
    """Show the comparison of the trainings and the names of its files."""
    table = comparison_table(report.comparison) if report.comparison else []
    return [*table, *map(str, report.files)]


def _compared(
    children: Sequence[ChildReport], folder: Path, recorder: Recorder
) -> tuple[Comparison | None, tuple[Path, ...]]:
    """Compare the trainings that finished, and record the outcome of all."""
    done = [child.run_id for child in children if child.run_id and child.status != "failed"]
    recorder.metrics({"sweep/finished": len(done), "sweep/failed": len(children) - len(done)})
    if not done:
        return None, ()
    with opened_store("read runs") as client:
        runs, curves = read_runs(client, run_ids=done), read_curves(client, done, CURVE)
    # Without a score are trainings that an earlier version has finished.
    comparison = compare(runs, SCORE if any(SCORE in run.metrics for run in runs) else None)
    files = write_comparison(folder, comparison, curves)
    with recorder.together():
        for file in files:
            recorder.artifact(file, "comparison")
    best = _best(comparison)
    verdict = "None has a score to be ranked by."
    if best is not None:
        settings = ", ".join(f"{name} {value}" for name, value in best.parameters.items())
        recorder.tags({"best": best.run_id})
        verdict = f"Best by {SCORE}: **{best.name}** ({settings})."
    failed = [child for child in children if child.status == "failed"]
    recorder.describe(
        f"{len(done)} of {len(children)} trainings finished. {verdict}"
        + "".join(f"\n\n- training {child.number} failed" for child in failed)
    )
    return comparison, tuple(files)


def _require_recorded(waiting: Sequence[WaitingRecord]) -> None:
    """StoreError if the store lacks the records of some trainings."""
    if waiting:
        raise StoreError(f"the store lacks the records of {len(waiting)} of them.")


def _best(comparison: Comparison) -> Row | None:
    """Return the training with the best score; None if none has a finite one."""
    first = comparison.rows[0]
    return first if math.isfinite(first.metrics.get(SCORE, math.nan)) else None


def _require_comparable(configs: Sequence[RunConfig]) -> None:
    """Check that the trainings of a sweep will be scored alike; ConfigError if not."""
    first, *others = [(ranking_parts(config), config.degradation) for config in configs]
    if any(other != first for other in others):
        raise ConfigError(
            "Cannot rank the trainings of a sweep: they would be scored on different volumes or by different"
            " degradations.",
            "Name the same data.validation for all, and sweep one degradation at a time.",
        )


def _parent(folder: Path, trials: Sequence[Trial]) -> str | None:
    """Return the id of the parent run of a sweep in a folder, None where nothing was started.

    Raises:
        ConfigError: It was another sweep, or it is recorded in another tracking store.
    """
    try:
        known = json.loads((folder / SWEEP).read_text())
        varied = known["trials"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        remedy = "Start the sweep again, in another folder."
        raise ReadError(f"{folder.name}/{SWEEP}", "it does not name the trainings of a sweep", remedy) from None
    if varied != [list(trial.settings) for trial in trials]:
        raise ConfigError(
            f"Cannot resume the sweep in {folder.name}: it varied something else.",
            "Use the configuration that it was started with, or another --out.",
        )
    address = resumable_run(folder)
    return address.run_id if address else known.get("run_id")  # earlier versions kept it with the trials


def _finished(folder: Path, trials: Sequence[Trial]) -> set[Trial]:
    """Find the trainings whose run has finished."""
    known = {trial: run_id for trial in trials if (run_id := _run_id(folder, trial))}
    with opened_store("read runs") as client:
        runs = read_runs(client, run_ids=list(known.values()))
    return {trial for trial, run in zip(known, runs, strict=True) if run.status == "FINISHED"}


def _run_id(folder: Path, trial: Trial) -> str | None:
    address = RunAddress.read(folder / str(trial.number) / ADDRESS)
    return address.run_id if address else None


def _name(trial: Trial, config: RunConfig) -> str:
    """Name a training by its number and varied keys, without paths unless they may be recorded."""
    shown = flatten(config if config.tracking.record_paths else without_paths(config))
    leaves = (setting.partition("=")[0] for setting in trial.settings)
    return f"{trial.number}: " + ", ".join(f"{key.split('.')[-1]}={shown.get(key, '…')}" for key in leaves)
