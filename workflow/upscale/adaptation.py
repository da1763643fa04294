"""Adaptation: a network is trained on the sharp planes of thick-slice volumes before these are super-resolved."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from configs.degradation import Degradation, Noise
from configs.errors import InputError
from configs.load import load_config, resolved_yaml
from configs.schema import EarlyStopping, Resources, RunConfig
from tasks.artifacts.network_file import NetworkFile
from tasks.files.atomic import replacing
from tasks.files.lock import locked
from tasks.imaging.consistency import recipe_at
from tasks.imaging.noise import scan_noise
from tasks.volume.inspection import inspect_volume
from tasks.volume.intensity import CLIP, find_intensity, normalise
from tasks.volume.scan import Scan
from workflow.cluster import cluster
from workflow.tracking.recorder import exit_on_sigterm
from workflow.train.run import MODEL, run_train
from workflow.upscale.plan import UpscaleRequest, VolumePlan, plan_volume
from workflow.upscale.report import Adaptation
from workflow.upscale.volumes import require_new

PRESET = "self4x"
FOLDER, MADE_FROM, OUTCOME = "adapted", "made-from.json", "outcome.json"
MAX_SCALE_RATIO = 1.02  # of volumes that share a network: their scales differ by rounded sizes
# Of the slices, from below the middle on: they show much, and both ends of the scan train.
HELD_OUT = {"start": 0.55, "stop": 0.75, "gap": 1}
EARLY_STOPPING = EarlyStopping(every=250, patience=8)  # so patient that training ends at its last step
LEAST_NOISE = 0.003  # in normalised intensity, below which an estimate is that of anatomy


def run_adaptation(
    request: UpscaleRequest, resources: Resources, settings: Sequence[str], console: Console
) -> Adaptation:
    """Train the network that restores thick-slice volumes on these themselves, as a run of its own, not registered.

    Args:
        request: The upscaling that follows; its volumes are all of one scale; of a series the first time point counts.
        resources: Training gets the CPU threads of the workers.
        settings: Overrides of the preset, each `section.key=value`.
        console: For progress.

    Raises:
        InputError: A volume cannot be adapted to, the model carries no card, or there is another adaptation.
        ConfigError: A setting is wrong, or the cluster has no room.
    """
    outputs = request.outputs
    if not (request.resume or request.overwrite):
        require_new(outputs)  # before the training
    kind = request.kind
    found = [(inspect_volume(source), output) for source, output in zip(request.sources, outputs, strict=True)]
    images = [(one, output) for one, output in found if kind == "image" or not (one.labels or kind)]
    if not images:
        raise InputError("Cannot adapt a network to label maps: no image is given.", "Leave --adapt out.")
    if kind == "image":
        settings = [*settings, "data.kind=image"]
    require_card(request.network)
    plans = [plan_volume(request, one.scan, output, one.extent) for one, output in images]
    config, initial = adaptation_config(plans, resources, settings), plans[0].network
    folder = (request.out or request.sources[0].parent).resolve() / FOLDER
    made_from = json.dumps(
        {
            "configuration": resolved_yaml(config),
            "volumes": [digest for one, _ in images for digest in one.digests],
            "model": initial.digest,
        }
    )
    with exit_on_sigterm(), locked(folder.with_name(".voxlift") / f"{FOLDER}.lock", f"{folder.parent.name}/{FOLDER}"):
        known = folder / MADE_FROM
        if folder.exists() and not request.overwrite:
            _require_same(known, made_from, resume=request.resume)
            if (folder / OUTCOME).is_file():
                return Adaptation(model=folder / MODEL, **json.loads((folder / OUTCOME).read_text()))
        else:
            shutil.rmtree(folder, ignore_errors=True)
        with replacing(known) as partial:
            partial.write_text(made_from)
        start_from = folder / "start.keras"
        with replacing(start_from) as partial:
            partial.write_bytes(initial.content)
        with cluster(resources.workers * resources.cpus_per_worker):
            report = run_train(
                config,
                folder,
                resume=request.resume,
                start_from=start_from,
                console=console,
                name="adapt",
                registers=False,
            )
        outcome = {"psnr": report.validation_psnr, "psnr_before": report.start_psnr}
        with replacing(folder / OUTCOME) as partial:
            partial.write_text(json.dumps(outcome))
    return Adaptation(model=report.model, **outcome)


def require_card(network: NetworkFile) -> None:
    """Refuse to adapt a model without a card.

    Raises:
        InputError: It carries none.
    """
    if network.card is None:
        raise InputError(
            f"Cannot adapt {network.name}: it carries no card that names its network.",
            "Leave --model out to start from the weights that ship.",
        )


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


def adaptation_config(plans: Sequence[VolumePlan], resources: Resources, settings: Sequence[str]) -> RunConfig:
    """Configure the preset `self4x` for volumes and the network that restores them.

    Args:
        plans: Of the volumes.
        resources: Training gets the CPU threads of the workers.
        settings: Overrides of the preset, each `section.key=value`.

    Raises:
        InputError: A volume cannot be adapted to.
        ConfigError: A setting is wrong.
    """
    recipes = [_recipe_across(plan) for plan in plans]
    factors = [recipe.depth.factor for recipe in recipes]
    if max(factors) > MAX_SCALE_RATIO * min(factors):
        raise InputError(
            f"Cannot adapt to {len(plans)} volumes at once: their scales across the slices reach from"
            f" {min(factors):.3g} to {max(factors):.3g}, and one network is trained for one.",
            "Give --scale, or adapt to them one by one.",
        )
    first = plans[0]
    network = [] if first.network.card is None else [f"network={first.network.card.network.model_dump_json()}"]
    return load_config(
        PRESET,
        [
            f"data.volumes={json.dumps([_first_volume(plan.scan) for plan in plans])}",
            f"data.held_out={json.dumps({'axis': first.axes.order[0], **HELD_OUT})}",
            f"degradation={recipes[0].model_dump_json()}",
            f"resources={resources.model_dump_json()}",
            "tracking.experiment=voxlift",
            f"training.early_stopping={EARLY_STOPPING.model_dump_json()}",
            *network,
            *settings,
        ],
    )


def _first_volume(scan: Scan) -> str:
    """The path of a volume, or of the first time point of a series."""
    return str(scan.path.resolve()) + ("[0]" if scan.header.n_timepoints > 1 else "")


def _recipe_across(plan: VolumePlan) -> Degradation:
    """Degradation from the wanted slices to those of a volume, with the noise that it lacks where voxels are averaged.

    A mean of sharp voxels has less noise than a slice of the scan has.
    """
    fine, coarse = plan.axes.network_shape(plan.target.shape), plan.axes.network_shape(plan.scan.grid.shape)
    if plan.recipe is None or fine[1:] != coarse[1:] or fine[0] <= coarse[0]:
        wanted = ",".join(f"{scale:.3g}" for scale in plan.scale)
        raise InputError(
            f"Cannot adapt to {plan.name}: a network learns from its planes to refine it across them, along"
            f" {'ijk'[plan.axes.order[0]]}, and the scale is {wanted}.",
            "Give a --scale or --spacing that is finer there and leaves the planes as they are, or leave --adapt out.",
        )
    recipe, volume = recipe_at(plan.recipe, fine, coarse), plan.scan.read()
    noise = scan_noise(plan.axes.to_network(normalise(volume.voxels, find_intensity(volume.voxels), clip=CLIP)))
    lacking = noise * float(np.sqrt(1 - coarse.depth / fine.depth)) if noise > LEAST_NOISE else 0.0
    return recipe.model_copy(update={"noise": Noise(kind="gaussian", sigma=round(lacking, 4))})
