"""Checkpoints of a training: all that the next step depends on, in files that appear when they are complete."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.errors import InputError
from configs.load import flatten
from configs.schema import RunConfig
from tasks.files.atomic import replacing

# Sections that may change between the start of a run and its resumption without changing the result.
FREE = ("resources.", "tracking.", "training.checkpoints.")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a training after a step. Data order and randomness follow from the step and the seed.

    Args:
        step: Steps taken.
        variables: Weights, optimizer state and moving averages, in the order of `Trainer.variables`.
        losses: Of every step so far, float64 `[step]`.
        best: Weights of the best validation so far; empty without one.
        best_psnr: Of that validation, in dB.
        misses: Validations since then.
        validations: PSNR of every validation so far, in dB.
    """

    step: int
    variables: Sequence[NDArray[np.generic]]
    losses: NDArray[np.float64]
    best: Sequence[NDArray[np.generic]] = ()
    best_psnr: float = -np.inf
    misses: int = 0
    validations: Sequence[float] = ()

    @property
    def is_finite(self) -> bool:
        """True if no loss, weight or other value is NaN or infinite."""
        return all(np.isfinite(values).all() for values in (self.losses, *self.variables, *self.best))


def write_checkpoint(folder: Path, checkpoint: Checkpoint, config: RunConfig) -> None:
    """Write a checkpoint under a temporary name, rename it into place, and remove those that are too old to be kept."""
    lists = {"variable": checkpoint.variables, "best": checkpoint.best}
    arrays = {f"{kind}-{number}": value for kind, values in lists.items() for number, value in enumerate(values)}
    with replacing(folder / f"step-{checkpoint.step:08d}.npz") as partial:
        np.savez(
            partial,
            allow_pickle=False,
            step=checkpoint.step,
            losses=checkpoint.losses,
            best_psnr=checkpoint.best_psnr,
            misses=checkpoint.misses,
            validations=np.array(checkpoint.validations),
            config=fingerprint(config),
            arrays=len(arrays),
            **arrays,
        )
    for old in _files(folder)[: -config.training.checkpoints.keep]:
        old.unlink(missing_ok=True)


def last_checkpoint(folder: Path, config: RunConfig) -> Checkpoint | None:
    """Read the last checkpoint of a folder that is not damaged; None where there is none.

    Raises:
        InputError: All are damaged, or it is not finite or belongs to another configuration.
    """
    for partial in folder.glob(".*.partial.step-*.npz"):  # of a writer that was killed
        partial.unlink(missing_ok=True)
    damage = ""
    for path in reversed(_files(folder)):
        name = f"{folder.name}/{path.name}"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
            same, checkpoint = str(arrays["config"]) == fingerprint(config), _checkpoint(arrays)
        except Exception as error:  # noqa: BLE001 - a damaged archive may raise anything
            damage = damage or f"{name} is not a checkpoint ({' '.join(str(error).split())})"
            continue
        if not same:
            raise InputError(
                f"Cannot resume from {name}: it was written with another configuration or by another version, and the"
                " result would be that of neither.",
                "Give the configuration and the overrides of the first start, or another folder.",
            )
        if not checkpoint.is_finite:
            raise InputError(
                f"Cannot resume from {name}: some of its values are NaN or infinite.",
                "Remove it to go on from the one before, or start again with a lower training.learning_rate.",
            )
        return checkpoint
    if damage:
        raise InputError(f"Cannot resume: {damage}, nor is any other in that folder.", "Start the training again.")
    return None


def _checkpoint(arrays: dict[str, NDArray[np.generic]]) -> Checkpoint:
    variables, best = _numbered(arrays, "variable"), _numbered(arrays, "best")
    if (count := len(variables) + len(best)) != arrays["arrays"]:
        raise ValueError(f"it holds {count} of {arrays['arrays']} arrays")
    return Checkpoint(
        step=int(arrays["step"]),
        variables=variables,
        losses=arrays["losses"].astype(np.float64),
        best=best,
        best_psnr=float(arrays["best_psnr"]),
        misses=int(arrays["misses"]),
        validations=arrays["validations"].tolist(),
    )


def _numbered(arrays: dict[str, NDArray[np.generic]], kind: str) -> list[NDArray[np.generic]]:
    count = sum(name.startswith(f"{kind}-") for name in arrays)
    return [arrays[f"{kind}-{number}"] for number in range(count)]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.npz") if path.stem.removeprefix("step-").isdecimal())


def fingerprint(config: RunConfig) -> str:
    """Return a digest of all in a configuration that determines the result of a training."""
    leaves = {key: value for key, value in flatten(config).items() if not key.startswith(FREE)}
    return hashlib.sha256(repr(sorted(leaves.items())).encode()).hexdigest()
