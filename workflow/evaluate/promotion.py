"""Promotion: the challenger of a registered model becomes its champion if it is no worse on the same references."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console, RenderableType
from rich.table import Table

from configs.degradation import Degradation
from configs.errors import InputError
from configs.load import flatten
from configs.schema import Resources
from tasks.artifacts.network_file import read_network
from tasks.scoring.protocol import Score
from workflow.evaluate.evaluation import evaluate
from workflow.tracking import input_volume, recorded_run, resolve_model
from workflow.tracking.provenance import record_environment
from workflow.tracking.registry import CHALLENGER, CHAMPION, Version, aliased_version, conclude

# Differences up to these count as equal: sums in another order, on another machine, give as much.
EQUAL = {"psnr": 0.005, "ssim": 0.0001}


@dataclass(frozen=True)
class ReferenceScores:
    """Scores of two models on one reference.

    Args:
        psnr: By "champion" and "challenger".
        ssim: The same.
    """

    psnr: Mapping[str, Score]
    ssim: Mapping[str, Score]


@dataclass(frozen=True)
class Promotion:
    """Result of a comparison.

    Args:
        promoted: Whether the challenger is the champion now.
        reason: The scores that decided.
        champion: The version that was the champion before.
        challenger: The version that was compared with it.
        scores: For each reference.
        run_id: Of the run that records it.
    """

    promoted: bool
    reason: str
    champion: Version
    challenger: Version
    scores: tuple[ReferenceScores, ...]
    run_id: str


def promote(
    name: str,
    references: Sequence[Path],
    degradation: Degradation,
    resources: Resources,
    experiment: str,
    console: Console,
) -> Promotion:
    """Compare champion and challenger of a registered model, and move the alias if the challenger is no worse.

    Args:
        name: Of the registered model.
        references: Volumes that neither was trained on.
        degradation: Makes the coarse volumes.
        resources: For restoring.
        experiment: Where the comparison is recorded.
        console: For progress.

    Raises:
        InputError: There is no champion or challenger, or a reference cannot be used.
    """
    versions = {alias: aliased_version(name, alias) for alias in (CHAMPION, CHALLENGER)}
    if versions[CHAMPION].version == versions[CHALLENGER].version:
        raise InputError(f"Cannot promote: version {versions[CHAMPION].version} of {name} is the champion already.")
    networks = {alias: read_network(resolve_model(version.uri)) for alias, version in versions.items()}
    inputs = [input_volume(path, "reference", record_paths=False) for path in references]
    with recorded_run(experiment, f"promote {name}", tags={"degradation": degradation.name}) as recorder:
        record_environment(recorder, "promote")
        recorder.parameters(flatten(degradation, "degradation"))
        recorder.inputs(inputs)
        volumes = [
            evaluate(references, network, degradation, resources, None, console).volumes
            for network in networks.values()
        ]
        scores = tuple(
            ReferenceScores(
                psnr=dict(zip(networks, (one.psnr for one in pair), strict=True)),
                ssim=dict(zip(networks, (one.ssim for one in pair), strict=True)),
            )
            for pair in zip(*volumes, strict=True)
        )
        promoted, reason = decide(scores)
        for step, one in enumerate(scores):
            for measure, figures in (("psnr", one.psnr), ("ssim", one.ssim)):
                recorder.metrics({f"{measure}/{alias}": score.restored for alias, score in figures.items()}, step)
        numbers = f"Challenger {versions[CHALLENGER].version} against champion {versions[CHAMPION].version}"
        recorder.describe(f"{numbers}: {reason}")
        conclude(versions[CHALLENGER], reason, promoted=promoted)
    return Promotion(promoted, reason, versions[CHAMPION], versions[CHALLENGER], scores, recorder.address.run_id)


def decide(scores: Sequence[ReferenceScores]) -> tuple[bool, str]:
    """Decide whether the challenger is no worse than the champion: neither by mean PSNR nor by mean SSIM.

    >>> score = {"champion": Score(30.0, 29, 28, 27), "challenger": Score(30.5, 29, 28, 27)}
    >>> same = {"champion": Score(0.9, 0.8, 0.8, 0.8), "challenger": Score(0.9, 0.8, 0.8, 0.8)}
    >>> decide([ReferenceScores(score, same)])
    (True, 'PSNR 30.50 against 30.00 dB, SSIM 0.9000 against 0.9000, on 1 reference(s)')
    """
    means = {
        measure: {
            alias: fmean(getattr(one, measure)[alias].restored for one in scores) for alias in (CHAMPION, CHALLENGER)
        }
        for measure in EQUAL
    }
    no_worse = all(found[CHALLENGER] >= found[CHAMPION] - EQUAL[measure] for measure, found in means.items())
    reason = (
        f"PSNR {means['psnr'][CHALLENGER]:.2f} against {means['psnr'][CHAMPION]:.2f} dB, SSIM"
        f" {means['ssim'][CHALLENGER]:.4f} against {means['ssim'][CHAMPION]:.4f}, on {len(scores)} reference(s)"
    )
    return no_worse, reason


def promotion_table(promotion: Promotion) -> list[RenderableType]:
    """Show a comparison in the terminal."""
    table = Table("reference", "measure", "cubic", CHAMPION, CHALLENGER)
    for number, one in enumerate(promotion.scores, start=1):
        for measure, figures in (("psnr", one.psnr), ("ssim", one.ssim)):
            values = (figures[CHAMPION].cubic, figures[CHAMPION].restored, figures[CHALLENGER].restored)
            table.add_row(str(number), measure, *(f"{value:.4g}" for value in values))
    now = promotion.challenger if promotion.promoted else promotion.champion
    verdict = "takes the champion's place" if promotion.promoted else "stays the challenger"
    return [
        table,
        f"Version {promotion.challenger.version} {verdict}: {promotion.reason}. Champion: version {now.version}.",
    ]
