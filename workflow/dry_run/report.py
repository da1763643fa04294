"""Report of `voxlift dry-run`: checks, estimates next to what was measured, the cluster; and all of it as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.machine.check import Check
from workflow.cluster.inventory import Node
from workflow.dry_run.checklist import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

ORDER = (
    *("configuration", "data", "model", "outputs", "output folder", "disk", "tracking", "cluster", "room", "replicas"),
    *("shared storage", "stages", "memory", "shard plan", "range of the model", "training step", "shard", "time"),
)
STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True)
class Memory:
    """MiB beyond an idle process: by the layers alone, and as it was seen; None where it was not found out."""

    estimated: float | None = None
    measured: float | None = None


@dataclass(frozen=True)
class Estimates:
    """Estimate for the real run; None where it was not found out.

    Args:
        seconds_per_step: While patches are drawn next to it.
        training_seconds: From the first patch to the last step.
        replica_mib: Of each model replica in training.
        shard_mib: Of a worker for a shard of the volume that has the largest.
        shards: Of all volumes that would be restored.
        overhead: Voxels computed over voxels kept.
        restoring_seconds: From the first shard given out to the last one back.
        total_seconds: From the command to its end; with inputs, of the two commands.
        output_bytes: The most that outputs, checkpoints and artifacts take on disk.
    """

    seconds_per_step: float | None = None
    training_seconds: float | None = None
    replica_mib: Memory = Memory()
    shard_mib: Memory = Memory()
    shards: int | None = None
    overhead: float | None = None
    restoring_seconds: float | None = None
    total_seconds: float | None = None
    output_bytes: int | None = None


@dataclass(frozen=True)
class ClusterReport:
    """Resources that Ray reports, over all nodes."""

    nodes: int
    cpus: int
    gpus: int
    memory_mib: int
    object_store_mib: int


@dataclass(frozen=True)
class DryRunReport:
    """Findings of a dry run.

    Args:
        checks: In the order in which a run needs what they are about.
        ok: Whether none has failed.
        faults: A message for each fault, with its remedy.
        estimates: What the real run takes.
        cluster: What Ray reports; None if there is none.
        seconds: What the dry run took.
    """

    checks: tuple[Check, ...]
    ok: bool
    faults: tuple[str, ...]
    estimates: Estimates
    cluster: ClusterReport | None
    seconds: float


def cluster_report(nodes: Sequence[Node]) -> ClusterReport:
    """Add up the nodes."""
    return ClusterReport(
        nodes=len(nodes),
        cpus=sum(node.cpus for node in nodes),
        gpus=sum(node.gpus for node in nodes),
        memory_mib=sum(node.memory_bytes for node in nodes) >> 20,
        object_store_mib=sum(node.object_store_bytes for node in nodes) >> 20,
    )


def in_order(checks: Sequence[Check]) -> tuple[Check, ...]:
    """The checks in the order in which a run needs what they are about, however they were made."""
    return tuple(sorted(checks, key=lambda check: ORDER.index(check.name)))


def summary(report: DryRunReport) -> "list[RenderableType]":
    """A line for each check, with the remedy below what was seen, and the verdict."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    failed, warned = (sum(check.status == status for check in report.checks) for status in ("failed", "warning"))
    verdict = f"{len(report.checks)} checks in {report.seconds:.0f} s: {failed} failed, {counted(warned, 'warning')}"
    if failed and report.estimates.seconds_per_step is None:
        verdict += "; nothing was tried beyond them"
    table = Table("", "check", "tried", "seen", box=SIMPLE_HEAD, caption=verdict, caption_justify="left")
    for check in report.checks:
        seen = check.seen if not check.remedy else f"{check.seen}\n→ {check.remedy}"
        table.add_row(Text(check.status, style=STYLES[check.status]), check.name, Text(check.tried), Text(seen))
    return [table]
