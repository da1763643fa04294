"""A list of checks: what was tried, what was seen, and the remedy for what would fail."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from configs.errors import VoxliftError
from tasks.machine.check import Check, first_line


@dataclass
class Attempt:
    """A check on its way.

    Args:
        name: Of the check.
        tried: What is done.
        remedy: For faults whose message names none.
    """

    name: str
    tried: str
    remedy: str = ""
    seen: list[str] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)

    def ok(self, what: str) -> None:
        """Note what is as it should be."""
        self.seen.append(what)

    def warning(self, what: str, remedy: str) -> None:
        """Note what is odd and what to do about it."""
        self.remarks.append((what, remedy))

    def failure(self, problem: str, remedy: str = "") -> None:
        """Note what would make the real run fail; the same problem counts once."""
        ended = problem if problem.endswith((".", "!", "?")) else f"{problem}."
        fault = " ".join(ended.split()), remedy or self.remedy
        if fault not in self.faults:
            self.faults.append(fault)

    def made(self) -> Check:
        """The check as it stands."""
        if self.faults:
            said, remedies = zip(*self.faults, strict=True)
            return Check(self.name, self.tried, _lines(said), "failed", _lines(remedies))
        seen = [*self.seen, *(what for what, _ in self.remarks)]
        if self.remarks:
            return Check(self.name, self.tried, _lines(seen), "warning", _lines([remedy for _, remedy in self.remarks]))
        return Check(self.name, self.tried, _lines(seen))


class Checklist:
    """Checks in the order in which they are made.

    Attributes:
        checks: Those that are done.
        faults: A message for each fault, with its remedy.
    """

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.faults: list[str] = []

    def extend(self, other: "Checklist") -> None:
        """Take over the checks of another list."""
        self.checks += other.checks
        self.faults += other.faults

    @contextmanager
    def trying(self, name: str, tried: str, remedy: str) -> Iterator[Attempt]:
        """Make a check of what happens in the block: an error ends it as a fault and stops no other check.

        Args:
            name: Of the check.
            tried: What the block does.
            remedy: For faults whose message names none.
        """
        attempt = Attempt(name, tried, remedy)
        try:
            yield attempt
        except VoxliftError as error:
            attempt.failure(error.problem, error.remedy)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run would meet it too
            attempt.failure(f"Cannot finish {tried}: {type(error).__name__}: {first_line(error)}.")
        self.checks.append(attempt.made())
        self.faults += [" ".join(fault) for fault in attempt.faults]


def counted(number: int, thing: str) -> str:
    """A number of things.

    >>> counted(1, "node"), counted(3, "GPU")
    ('1 node', '3 GPUs')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _lines(said: Iterable[str]) -> str:
    return "\n".join(dict.fromkeys(said))
