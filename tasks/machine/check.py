"""Checks of a machine or of a planned run: what was tried, what was seen, the verdict, the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from configs.errors import VoxliftError

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """A check that was made.

    Args:
        name: What was checked.
        tried: How.
        seen: The result, a line for each finding.
        status: "ok"; "warning" where work goes on, but not as well as it could; "failed" where it cannot.
        remedy: What to do about it, if anything.
    """

    name: str
    tried: str
    seen: str
    status: Status = "ok"
    remedy: str | None = None


@dataclass
class Attempt:
    """A check in progress; a finding without a remedy of its own gets the remedy of the check."""

    name: str
    tried: str
    remedy: str
    _notes: list[tuple[Status, str, str]] = field(default_factory=list)

    def ok(self, seen: str) -> None:
        """Note what is as it should be."""
        self._note("ok", seen, "")

    def warning(self, seen: str, remedy: str = "") -> None:
        """Note what is unusual, and what to do about it."""
        self._note("warning", seen, remedy or self.remedy)

    def failure(self, problem: str, remedy: str = "") -> None:
        """Note what would make work fail."""
        self._note("failed", " ".join(problem.split()), remedy or self.remedy)

    def error(self, error: VoxliftError) -> None:
        """Note an error as a failure."""
        self.failure(error.problem, error.remedy)

    def _note(self, *note: *tuple[Status, str, str]) -> None:
        if note not in self._notes:  # the same finding counts once
            self._notes.append(note)

    @property
    def failures(self) -> list[str]:
        """A message for each failure, with its remedy."""
        ended = {seen: seen if seen.endswith((".", "!", "?")) else f"{seen}." for _, seen, _ in self._notes}
        return [f"{ended[seen]} {remedy}".rstrip() for status, seen, remedy in self._notes if status == "failed"]

    @property
    def check(self) -> Check:
        """The check as it stands; after a failure, with the failures alone."""
        noted = {status for status, *_ in self._notes}
        verdict: Status = "failed" if "failed" in noted else "warning" if "warning" in noted else "ok"
        shown = [note for note in self._notes if verdict != "failed" or note[0] == "failed"]
        seen = "\n".join(dict.fromkeys(seen for _, seen, _ in shown))
        remedies = "\n".join(dict.fromkeys(remedy for _, _, remedy in shown if remedy))
        return Check(self.name, self.tried, seen, verdict, remedies or None)


class Checklist:
    """Checks in the order in which they are made.

    Attributes:
        checks: Those that are done.
        failures: A message for each failure, with its remedy.
    """

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.failures: list[str] = []

    def extend(self, other: "Checklist") -> None:
        """Take over the checks of another list."""
        self.checks += other.checks
        self.failures += other.failures

    @contextmanager
    def trying(self, name: str, tried: str, remedy: str) -> Iterator[Attempt]:
        """Make a check of the block: an error ends it as a failure and stops no other check.

        Args:
            name: Of the check.
            tried: What the block does.
            remedy: For findings and errors that have none.
        """
        attempt = Attempt(name, tried, remedy)
        try:
            yield attempt
        except VoxliftError as error:
            attempt.error(error)
        except Exception as error:  # noqa: BLE001 - any error here would also stop the work
            attempt.failure(f"Cannot check {name}: {type(error).__name__}: {first_line(error)}")
        self.checks.append(attempt.check)
        self.failures += attempt.failures

    def not_tried(self, name: str, tried: str, needed: str) -> None:
        """Count a check as failed because another one that it needs has failed."""
        with self.trying(name, tried, f"Fix what the check of {needed} says.") as attempt:
            attempt.failure(f"not tried: it needs {needed}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def counted(number: int, thing: str) -> str:
    """A number with its noun.

    >>> counted(1, "node"), counted(3, "GPU")
    ('1 node', '3 GPUs')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
