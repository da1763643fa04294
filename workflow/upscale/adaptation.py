"""Adaptation: a network is trained on the sharp planes of thick-slice volumes before these are super-resolved."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from configs.degradation import Degradation
from configs.errors import InputError
from configs.load import load_config, resolved_yaml
from configs.schema import Resources, RunConfig
from tasks.artifacts.network_file import NetworkFile
from tasks.files.atomic import replacing
from tasks.files.lock import locked
from tasks.files.outputs import output_paths
from tasks.imaging.consistency import recipe_at
from tasks.volume.grid import Three, network_axes, target_grid
from tasks.volume.inspection import inspect_volume
from tasks.volume.scan import Scan
from workflow.cluster import cluster
from workflow.tracking.recorder import exit_on_sigterm
from workflow.train.run import MODEL, run_train
from workflow.upscale.run import saved_network
from workflow.upscale.volumes import require_new

PRESET = "self4x"
FOLDER, MADE_FROM = "adapted", "made-from.json"
MAX_SCALE_RATIO = 1.02  # of volumes that share a network: their scales differ by rounded sizes


def run_adaptation(
    sources: Sequence[Path],
    out: Path,
    *,
    model: str | None,
    scale: Three | None,
    spacing: Three | None,
    resources: Resources,
    settings: Sequence[str],
    resume: bool,
    console: Console,
    overwrite: bool = False,
    dataset: Path | None = None,
    kind: Literal["image", "labels"] | None = None,
) -> Path:
    """Train a network on thick-slice volumes themselves, recorded as a run of its own and not registered.

    Args:
        sources: Volumes, all of one scale; of a series of time points the first counts.
        out: Folder of the outputs; the training is stored in its folder `adapted`.
        model: Gives the initial weights; without it they are random.
        scale: Target voxels per voxel along (i, j, k); without it and a spacing, that of the model or the preset.
        spacing: Wanted mm along (i, j, k), instead of a scale.
        resources: Training gets the CPU threads of the workers.
        settings: Overrides of the preset, each `section.key=value`.
        resume: Continue an interrupted adaptation to the same volumes.
        console: For progress.
        overwrite: Replace an earlier adaptation.
        dataset: Root of the BIDS dataset that the sources are from.
        kind: Of all sources; None goes by header, name and values of each. Label maps are left out.

    Returns:
        The `.keras` file.

    Raises:
        InputError: A volume cannot be adapted to, the model carries no card, or there is another adaptation.
        ConfigError: A setting is wrong, or the cluster has no room.
    """
    if not (resume or overwrite):
        require_new(output_paths(sources, out, dataset))  # before the training
    initial = None if model is None else saved_network(model)
    found = [inspect_volume(source) for source in sources]
    inspected = [one for one in found if kind == "image" or not (one.labels or kind)]
    if not inspected:
        raise InputError("Cannot adapt a network to label maps: no image is given.", "Leave --adapt out.")
    if kind == "image":
        settings = [*settings, "data.kind=image"]
    config = adaptation_config([one.scan for one in inspected], initial, scale, spacing, resources, settings)
    folder = out.resolve() / FOLDER
    made_from = json.dumps(
        {
            "configuration": resolved_yaml(config),
            "volumes": [digest for one in inspected for digest in one.digests],
            "model": None if initial is None else initial.digest,
        }
    )
    with exit_on_sigterm(), locked(folder.with_name(".voxlift") / f"{FOLDER}.lock", f"{out.name}/{FOLDER}"):
        known = folder / MADE_FROM
        if folder.exists() and not overwrite:
            _require_same(known, made_from, resume=resume)
            if (folder / MODEL).is_file():
                return folder / MODEL
        else:
            shutil.rmtree(folder, ignore_errors=True)
        with replacing(known) as partial:
            partial.write_text(made_from)
        start_from = None
        if initial is not None:
            start_from = folder / "start.keras"
            with replacing(start_from) as partial:
                partial.write_bytes(initial.content)
        with cluster(resources.workers * resources.cpus_per_worker):
            report = run_train(
                config, folder, resume=resume, start_from=start_from, console=console, name="adapt", registers=False
            )
    return report.model


def _require_same(known: Path, made_from: str, *, resume: bool) -> None:
    """Refuse to replace an adaptation, unless it is the one to resume."""
    if not resume:
        problem = "there is one already"
    elif not known.is_file() or known.read_text() != made_from:
        problem = "the one that is there was made from other volumes, settings or weights"
    else:
        return
    raise InputError(
        f"Cannot adapt a network in {known.parents[1].name}/{FOLDER}: {problem}.",
        "Give --resume to continue or use it, --overwrite to replace it, or another --out.",
    )


def adaptation_config(
    scans: Sequence[Scan],
    initial: NetworkFile | None,
    scale: Three | None,
    spacing: Three | None,
    resources: Resources,
    settings: Sequence[str],
) -> RunConfig:
    """Configure the preset `self4x` for the volumes, the scale and the initial network.

    Raises:
        InputError: A volume cannot be adapted to, or the model carries no card.
        ConfigError: A setting is wrong.
    """
    recipe, network = load_config(PRESET).degradation, []
    if initial is not None:
        if initial.card is None:
            raise InputError(
                f"Cannot adapt {initial.name}: it carries no card that names its network.",
                "Leave --model out to start from random weights.",
            )
        recipe, network = initial.card.degradation, [f"network={initial.card.network.model_dump_json()}"]
    recipes = [_recipe_across(scan, recipe, scale, spacing) for scan in scans]
    factors = [recipe.depth.factor for recipe in recipes]
    if max(factors) > MAX_SCALE_RATIO * min(factors):
        raise InputError(
            f"Cannot adapt to {len(scans)} volumes at once: their scales across the slices reach from"
            f" {min(factors):.3g} to {max(factors):.3g}, and one network is trained for one.",
            "Give --scale, or adapt to them one by one.",
        )
    return load_config(
        PRESET,
        [
            f"data.volumes={json.dumps([_first_volume(scan) for scan in scans])}",
            f"degradation={recipes[0].model_dump_json()}",
            f"resources={resources.model_dump_json()}",
            "tracking.experiment=voxlift",
            *network,
            *settings,
        ],
    )


def _first_volume(scan: Scan) -> str:
    """The path of a volume, or of the first time point of a series."""
    return str(scan.path.resolve()) + ("[0]" if scan.header.n_timepoints > 1 else "")


def _recipe_across(scan: Scan, recipe: Degradation, scale: Three | None, spacing: Three | None) -> Degradation:
    """Degradation from the wanted slices to those of a volume."""
    grid = scan.grid
    axes = network_axes(grid)
    target = target_grid(grid, scale, spacing, trained_for=recipe.scale)
    fine, coarse = axes.network_shape(target.shape), axes.network_shape(grid.shape)
    if fine[1:] != coarse[1:] or fine[0] <= coarse[0]:
        wanted = ",".join(f"{size / have:.3g}" for size, have in zip(target.shape, grid.shape, strict=True))
        raise InputError(
            f"Cannot adapt to {scan.path.name}: a network learns from its planes to refine it across them, along"
            f" {'ijk'[axes.order[0]]}, and the scale is {wanted}.",
            "Give a --scale or --spacing that is finer there and leaves the planes as they are, or leave --adapt out.",
        )
    return recipe_at(recipe, fine, coarse)
