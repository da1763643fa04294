"""An evaluation, kept in MLflow."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from configs.degradation import Degradation
from configs.load import flatten
from configs.schema import Resources
from tasks.network_file import NetworkFile
from workflow.evaluation import Evaluation, evaluate
from workflow.provenance import record_environment
from workflow.tracking import Recorder, input_volume, recorded_run

if TYPE_CHECKING:
    from rich.console import Console

EXPERIMENT = "voxlift"


def recorded_evaluation(
    references: Sequence[Path],
    network: NetworkFile,
    recipe: Degradation,
    resources: Resources,
    mask: Path | None,
    console: "Console",
) -> Evaluation:
    """Score a model on volumes, as `evaluate`, and record it."""
    inputs = [input_volume(path, "reference", record_paths=False) for path in references]
    with recorded_run(EXPERIMENT, "evaluate", tags={"degradation": recipe.name}) as recorder:
        record_environment(recorder, "evaluate")
        recorder.inputs(inputs)
        recorder.parameters({"model.sha256": network.digest, **flatten(recipe, "degradation")})
        with recorder.phase("evaluation"):
            evaluation = evaluate(references, network, recipe, resources, mask, console)
        record_scores(recorder, evaluation)
    return evaluation


def record_scores(recorder: Recorder, evaluation: Evaluation) -> None:
    """Record the means as scores of the run, and those of each volume by its number."""
    overall = asdict(evaluation.overall)
    for measure in ("psnr", "ssim", "nmse"):
        recorder.metrics({f"{measure}/{name}": value for name, value in overall[measure].items()})
        for number, volume in enumerate(evaluation.volumes):
            score = getattr(volume, measure)
            recorder.metrics({f"volumes/{measure}/{name}": value for name, value in asdict(score).items()}, number)
    recorder.metrics({"consistency": overall["consistency"]})
