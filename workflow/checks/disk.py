"""Check that what a run writes can be written: folders that take it, and disks that hold it."""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.schema import RunConfig
from tasks.machine.check import Checklist
from tasks.rehearsal import BuiltNetwork
from tasks.sharding.plan import MIB
from workflow.checks.machine import free_bytes

VALUE_BYTES = 4  # float32
MODEL_MIB = 1  # what a saved model holds next to its weights: architecture, card, example
RUN_MIB = 4  # what a run records next to its model: configuration, environment, pictures, pages
REMEDY = "Make room there, or name another folder with --out."


@dataclass(frozen=True)
class Need:
    """Files that a run writes into a folder, which need not exist yet, and the most bytes they take at a time."""

    what: str
    folder: Path
    bytes: int


def training_needs(config: RunConfig, built: BuiltNetwork, out: Path, artifacts: Path | None) -> list[Need]:
    """Estimate what training writes; artifacts go to a folder of the tracking store, None if on another machine."""
    training = config.training
    model = built.parameters * VALUE_BYTES + MODEL_MIB * MIB
    # Weights, their averages, the best of them; one checkpoint more than are kept while the last is written.
    values = (3 if training.early_stopping else 2) * built.parameters + built.optimizer_values
    count = training.checkpoints.keep + 1 if training.checkpoints.every else 0
    needs = [Need("checkpoints", out, count * values * VALUE_BYTES), Need("the model", out, model)]
    return needs + ([Need("artifacts", artifacts, model + RUN_MIB * MIB)] if artifacts is not None else [])


def check_writable(checks: Checklist, folder: Path) -> bool:
    """Check that a file can be written where a folder is or would be made; returns whether it can."""
    with checks.trying("output folder", "a file written and removed where outputs would go", REMEDY) as attempt:
        try:
            free_bytes(existing_folder(folder))
        except OSError as error:
            attempt.failure(
                f"Cannot write to {folder}: {error.strerror or error}.",
                "Name a folder that you may write to with --out.",
            )
        attempt.ok(f"{folder} can be written")
    return not attempt.failures


def check_room_on_disk(checks: Checklist, needs: Sequence[Need]) -> None:
    """Compare what a run writes with the free space of the disks."""
    on_disks: dict[int, list[Need]] = defaultdict(list)
    for need in needs:
        on_disks[existing_folder(need.folder).stat().st_dev].append(need)
    with checks.trying("disk", f"free room against {', '.join(need.what for need in needs)}", REMEDY) as attempt:
        for sharing in on_disks.values():
            wanted = sum(need.bytes for need in sharing)
            free = shutil.disk_usage(existing_folder(sharing[0].folder)).free
            places = " and ".join(dict.fromkeys(str(need.folder) for need in sharing))
            said = f"{wanted / MIB:.0f} MiB at most, {free / MIB:.0f} MiB free at {places}"
            if wanted > free:
                parts = ", ".join(f"{need.what} {need.bytes / MIB:.0f} MiB" for need in sharing)
                attempt.failure(
                    f"Cannot store what the run writes: {said} ({parts}).",
                    f"Make {(wanted - free) / MIB:.0f} MiB of room there, or name a folder on another disk with --out.",
                )
            attempt.ok(said)


def existing_folder(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.exists())
