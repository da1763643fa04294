"""An evaluation, kept in MLflow."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path

from rich.console import Console

from configs.degradation import Degradation, named_degradation
from configs.errors import InputError
from configs.load import flatten
from configs.schema import Resources
from tasks.artifacts.network_file import NetworkFile, read_network
from workflow.evaluate.scoring import Evaluation, ScoredTrial, evaluate
from workflow.pages.quality import write_quality_page
from workflow.pages.quality_cases import reference_case
from workflow.tracking import Recorder, input_volume, recorded_run, resolve_model
from workflow.tracking.provenance import record_environment, record_network

EXPERIMENT = "voxlift"


def network_and_recipe(model: str, degradation: str | None) -> tuple[NetworkFile, Degradation]:
    """Read a model, and find how to degrade for it: as is named, or as it was trained for.

    Raises:
        InputError: There is no such model or degradation, or none is named and the model carries no card.
    """
    network = read_network(resolve_model(model))
    if degradation is not None:
        return network, named_degradation(degradation)
    if network.card is None:
        raise InputError(f"Cannot tell how to degrade: {network.name} carries no card.", "Give --degradation NAME.")
    return network, network.card.degradation


def recorded_evaluation(
    references: Sequence[Path],
    network: NetworkFile,
    recipe: Degradation,
    resources: Resources,
    mask: Path | None,
    console: Console,
) -> Evaluation:
    """Score a model on volumes, as `evaluate`, and record it, with a QC page for each."""
    numbers = count(1)
    inputs = [input_volume(path, "reference", record_paths=False) for path in references]
    with recorded_run(EXPERIMENT, "evaluate", tags={"degradation": recipe.name}) as recorder:
        record_environment(recorder, "evaluate")
        recorder.inputs(inputs)
        record_network(recorder, network)
        recorder.parameters(flatten(recipe, "degradation"))

        def page(scored: ScoredTrial) -> None:
            number, plan = next(numbers), scored.restored.plan
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / f"{number}.html"
                write_page(path, f"volume {number}", scored, network, recipe)
                recorder.artifact(path, "quality")
            recorder.metrics({"shards/count": len(plan.shards), "shards/overhead": plan.overhead}, number - 1)

        with recorder.phase("evaluation"):
            evaluation = evaluate(references, network, recipe, resources, mask, console, page)
        record_scores(recorder, evaluation)
        recorder.describe(description(evaluation))
    return evaluation


def description(evaluation: Evaluation) -> str:
    """Describe the run in Markdown, for the top of its page."""
    psnr, ssim = evaluation.overall.psnr, evaluation.overall.ssim
    rows = [
        f"| {name} | {getattr(psnr, name):.2f} | {getattr(psnr, name) - psnr.cubic:+.2f} | {getattr(ssim, name):.4f} |"
        for name in ("restored", "cubic", "trilinear")
    ]
    head = f"Means over {len(evaluation.volumes)} volume(s), degraded by {evaluation.degradation} and restored."
    return "\n".join([head, "", "| | PSNR [dB] | over cubic | SSIM |", "|---|---:|---:|---:|", *rows])


def write_page(path: Path, title: str, scored: ScoredTrial, network: NetworkFile, recipe: Degradation) -> None:
    """Write the QC page of a volume that was scored."""
    plan, scores = scored.restored.plan, scored.scores
    write_quality_page(path, reference_case(title, scored.degraded, scored.voxels, plan, network, recipe, scores))


def record_scores(recorder: Recorder, evaluation: Evaluation) -> None:
    """Record the means as scores of the run, and those of each volume by its number."""
    overall = asdict(evaluation.overall)
    for measure in ("psnr", "ssim", "nmse"):
        recorder.metrics({f"{measure}/{name}": value for name, value in overall[measure].items()})
        for number, volume in enumerate(evaluation.volumes):
            score = getattr(volume, measure)
            recorder.metrics({f"volumes/{measure}/{name}": value for name, value in asdict(score).items()}, number)
    recorder.metrics({"consistency": overall["consistency"]})
