"""The input of a training and the records that it reports."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.axes import NetworkShape
from configs.degradation import Degradation
from configs.schema import RunConfig
from tasks.files.lock import Lock
from tasks.imaging.consistency import consistent_interpolation
from tasks.imaging.resample import resample
from tasks.scoring.metrics import foreground_mask, psnr
from tasks.training.blocks import TrainingVolume


@dataclass(frozen=True, eq=False)
class ValidationVolume:
    """A volume on which training scores the network, normalised, float32 `[depth, height, width]`.

    Args:
        coarse: The degraded volume.
        resampled: The degraded volume on the fine grid.
        fine: The truth.
    """

    coarse: NDArray[np.float32]
    resampled: NDArray[np.float32]
    fine: NDArray[np.float32]


@dataclass(frozen=True)
class TrainingJob:
    """Input of a training.

    Args:
        config: The run.
        volumes: Volumes to learn from.
        validation: Volumes to score the network on: by early stopping, or at the last step.
        model_path: Path of the `.keras` file to write; it appears when it is complete.
        checkpoints: Folder for checkpoints; None writes none.
        resume: Whether to continue from the last checkpoint in that folder, if there is one.
        start_from: A `.keras` file with the initial weights.
        lock: Of the folder that it writes in; None where no other process knows the folder.
        drawing_processes: Processes that draw patches; with 0, threads of the one that trains do.
    """

    config: RunConfig
    volumes: Sequence[TrainingVolume] = field(repr=False)
    model_path: Path
    validation: Sequence[ValidationVolume] = field(default=(), repr=False)
    checkpoints: Path | None = None
    resume: bool = False
    start_from: Path | None = None
    lock: Lock | None = None
    drawing_processes: int = 0


@dataclass(frozen=True)
class TrainingStep:
    """One optimizer step, taken or replayed from the checkpoint that training continues from.

    Args:
        step: Number of the step, from 1.
        loss: Weighted sum of the losses over the batch, on the [0, 1] scale.
        learning_rate: Of this step.
    """

    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class Validation:
    """One validation on whole volumes.

    Args:
        step: After this step; 0 for the weights that training starts from.
        psnr: Mean over the volumes, inside the foreground, in dB.
        stops: Whether training ends here.
    """

    step: int
    psnr: float
    stops: bool


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """Result of a training.

    Args:
        model: The `.keras` file.
        parameters: Trainable weights.
        seconds: From the first patch to the last step, since the last resumption.
        waiting_share: Share of the time of all steps but the first in which the network waited for patches.
        replicas: Model replicas.
        device: Kind of device, "GPU" or "CPU".
        latent_shape: Shape of the latent of one batch, `(batch, depth, height, width, channels)`.
        steps: Steps taken, those before a resumption included.
        resumed_from: The step that training continued from; 0 for a fresh start.
        validation_psnr: Of the best validation, before a resumption or after it, in dB; None without validation.
        start_psnr: With early stopping, of the weights that training was given to start from. Where no later ones were
            better, they are what was saved.
    """

    model: Path
    parameters: int
    seconds: float
    waiting_share: float
    replicas: int
    device: str
    latent_shape: tuple[int, ...]
    steps: int
    resumed_from: int
    validation_psnr: float | None = None
    start_psnr: float | None = None


def baseline_psnr(volumes: Sequence[ValidationVolume], recipe: Degradation) -> dict[str, float]:
    """Score the baselines as validation scores the network: mean over the volumes, in dB.

    Args:
        volumes: Of the validation.
        recipe: That made their coarse volumes.

    Returns:
        By "corrected" (cubic, made consistent with the coarse volume), "cubic" and "trilinear".
    """
    scores: dict[str, list[float]] = {"corrected": [], "cubic": [], "trilinear": []}
    for volume in volumes:
        shape, mask = NetworkShape(*volume.fine.shape), foreground_mask(volume.fine)
        cubic, linear = resample(volume.coarse, shape), resample(volume.coarse, shape, "linear")
        estimates = consistent_interpolation(volume.coarse, shape, recipe, recipe.noise.sigma), cubic, linear
        for found, estimate in zip(scores.values(), estimates, strict=True):
            found.append(psnr(volume.fine, estimate, mask))
    return {name: float(np.mean(found)) for name, found in scores.items()}


TrainingRecord = TrainingStep | Validation | TrainedModel
