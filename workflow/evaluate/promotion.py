"""Promotion: the challenger of a registered model becomes its champion if it is better on the same references."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from rich.console import Console, RenderableType
from rich.table import Table

from configs.degradation import Degradation, named_degradation
from configs.errors import InputError, NotFiniteError
from configs.load import flatten
from configs.schema import Resources
from tasks.artifacts.network_file import NetworkFile, NotFiniteWeightsError, read_network
from tasks.scoring.protocol import Score
from workflow.evaluate.evaluation import VolumeScores, evaluate
from workflow.tracking import input_volume, recorded_run, resolve_model
from workflow.tracking.provenance import record_environment
from workflow.tracking.registry import CHALLENGER, CHAMPION, Version, aliased_version, conclude

# Differences up to these count as equal: sums in another order, on another machine, give as much.
EQUAL = {"psnr": 0.005, "ssim": 0.0001}
MIN_REFERENCES = 3
DEGRADATION = "iso2x"  # of models without a card


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
    degradation: Degradation | None,
    resources: Resources,
    experiment: str,
    console: Console,
    min_references: int = MIN_REFERENCES,
    *,
    as_images: bool = False,
) -> Promotion:
    """Compare champion and challenger of a registered model, and move the alias if the challenger is better.

    A champion whose weights or results are not finite loses to any challenger that restores the references.

    Args:
        name: Of the registered model.
        references: Volumes that neither was trained on.
        degradation: Makes the coarse volumes; by default the one that the champion was trained for.
        resources: For restoring.
        experiment: Where the comparison is recorded.
        console: For progress.
        min_references: Different references without which nothing is promoted.
        as_images: Take label maps for images too.

    Raises:
        InputError: There is no champion or challenger, there are too few references, a model was not trained for the
            degradation, the challenger's weights are not finite, or a reference cannot be used.
        NotFiniteError: The challenger restores a reference to voxels that are not finite.
        Exception: Why a reference could not be scored; nothing is promoted then.
    """
    versions = {alias: aliased_version(name, alias) for alias in (CHAMPION, CHALLENGER)}
    if versions[CHAMPION].version == versions[CHALLENGER].version:
        raise InputError(f"Cannot promote: version {versions[CHAMPION].version} of {name} is the champion already.")
    inputs = [input_volume(path, "reference", record_paths=False) for path in references]
    different = len({one.sha256 for one in inputs})
    if different < min_references:
        raise InputError(
            f"Cannot promote: {min_references} different references are needed, received {different}.",
            "Give more, or accept fewer with --min-references.",
        )
    challenger, champion = read_network(resolve_model(versions[CHALLENGER].uri)), None
    with suppress(NotFiniteWeightsError):
        champion = read_network(resolve_model(versions[CHAMPION].uri))
    recipe = degradation or _degradation(champion or challenger)
    for network in (champion, challenger):
        if network is not None:
            _require_trained_for(network, recipe, name)

    def score(network: NetworkFile) -> Sequence[VolumeScores]:
        # A model must not win by references that it fails on.
        given = references, network, recipe, resources, None, console
        return evaluate(*given, as_images=as_images, fail_fast=True).scored

    tags = {"degradation": recipe.name}
    with recorded_run(experiment, f"promote {name}", tags=tags, console=console) as recorder:
        record_environment(recorder, "promote")
        recorder.parameters(flatten(recipe, "degradation"))
        recorder.inputs(inputs)
        found = score(challenger)
        scores = _paired(_champion_scores(champion, score), found)
        promoted, reason = decide(scores)
        for step, one in enumerate(scores):
            for measure, figures in (("psnr", one.psnr), ("ssim", one.ssim)):
                known = {alias: score.restored for alias, score in figures.items() if math.isfinite(score.restored)}
                recorder.metrics({f"{measure}/{alias}": value for alias, value in known.items()}, step)
        numbers = f"Challenger {versions[CHALLENGER].version} against champion {versions[CHAMPION].version}"
        recorder.describe(f"{numbers}: {reason}")
        conclude(versions[CHALLENGER], reason, promoted=promoted)
    return Promotion(promoted, reason, versions[CHAMPION], versions[CHALLENGER], scores, recorder.address.run_id)


def _degradation(network: NetworkFile) -> Degradation:
    return network.card.degradation if network.card else named_degradation(DEGRADATION)


def _require_trained_for(network: NetworkFile, recipe: Degradation, name: str) -> None:
    """Refuse a comparison by another degradation than a network serves; one that goes by acquisitions serves many."""
    card = network.card
    if card is None or card.degradation == recipe:
        return
    if network.needs_acquisition and all(
        low <= factor <= high for factor, (low, high) in zip(recipe.scale, card.scale_range, strict=True)
    ):
        return
    raise InputError(
        f"Cannot promote: scores by the degradation {recipe.name} do not compare the models of {name}, one of which was"
        f" trained for {card.degradation.name}.",
        "Compare models of one degradation, named by --degradation, and register others under another"
        " tracking.registered_model.",
    )


def _champion_scores(
    champion: NetworkFile | None, score: Callable[[NetworkFile], Sequence[VolumeScores]]
) -> Sequence[VolumeScores]:
    """Score the champion; empty where its weights or results are not finite."""
    if champion is not None:
        with suppress(NotFiniteError):
            return score(champion)
    return ()


def _paired(champion: Sequence[VolumeScores], challenger: Sequence[VolumeScores]) -> tuple[ReferenceScores, ...]:
    """Pair the scores of both on each reference; those of a champion without any are NaN."""

    def pair(number: int, measure: str) -> dict[str, Score]:
        theirs: Score = getattr(challenger[number], measure)
        ours = getattr(champion[number], measure) if champion else replace(theirs, restored=math.nan)
        return {CHAMPION: ours, CHALLENGER: theirs}

    return tuple(ReferenceScores(pair(number, "psnr"), pair(number, "ssim")) for number in range(len(challenger)))


def decide(scores: Sequence[ReferenceScores]) -> tuple[bool, str]:
    """Decide whether the challenger is better: by mean PSNR or mean SSIM, and worse by neither.

    A tie is left to the champion. A mean that is not finite never wins.

    >>> score = {"champion": Score(30.0, 29, 28, 27), "challenger": Score(30.5, 29, 28, 27)}
    >>> same = {"champion": Score(0.9, 0.8, 0.8, 0.8), "challenger": Score(0.9, 0.8, 0.8, 0.8)}
    >>> decide([ReferenceScores(score, same)])
    (True, 'PSNR 30.50 against 30.00 dB, SSIM 0.9000 against 0.9000, on 1 reference(s)')
    >>> decide([ReferenceScores(same, same)])[1]
    'PSNR 0.90 against 0.90 dB, SSIM 0.9000 against 0.9000, on 1 reference(s): a tie'
    """
    means = {
        measure: {
            alias: fmean(getattr(one, measure)[alias].restored for one in scores) for alias in (CHAMPION, CHALLENGER)
        }
        for measure in EQUAL
    }
    reason = (
        f"PSNR {means['psnr'][CHALLENGER]:.2f} against {means['psnr'][CHAMPION]:.2f} dB, SSIM"
        f" {means['ssim'][CHALLENGER]:.4f} against {means['ssim'][CHAMPION]:.4f}, on {len(scores)} reference(s)"
    )
    for alias, wins in ((CHALLENGER, False), (CHAMPION, True)):
        if not all(math.isfinite(found[alias]) for found in means.values()):
            return wins, f"{reason}: the scores of the {alias} are not finite"
    gains = [(found[CHALLENGER] - found[CHAMPION]) / EQUAL[measure] for measure, found in means.items()]
    if min(gains) < -1:
        return False, reason
    return (True, reason) if max(gains) > 1 else (False, f"{reason}: a tie")


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
