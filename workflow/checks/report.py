"""Checks as a report and as a table."""

from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tasks.machine.check import Check, counted

STYLES = {"ok": "green", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True, kw_only=True)
class ChecksReport:
    """Findings of the doctor or of a dry run: the checks in order, whether none has failed, and the seconds taken."""

    checks: tuple[Check, ...]
    ok: bool
    seconds: float


def checks_table(report: ChecksReport, note: str = "") -> Table:
    """Tabulate the checks, each with its remedy, above a verdict with a note of the caller."""
    checks = report.checks
    failed, warned = (sum(check.status == status for check in checks) for status in ("failed", "warning"))
    verdict = f"{len(checks)} checks in {report.seconds:.0f} s: {failed} failed, {counted(warned, 'warning')}{note}"
    table = Table("", "check", "tried", "seen", box=SIMPLE_HEAD, caption=verdict, caption_justify="left")
    for check in checks:
        seen = Text(f"{check.seen}\n→ {check.remedy}" if check.remedy else check.seen, overflow="fold")
        table.add_row(Text(check.status, style=STYLES[check.status]), Text(check.name), Text(check.tried), seen)
    return table
