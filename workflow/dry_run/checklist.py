"""A list of checks: what was tried, what was seen, and the remedy for what would fail."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from configs.errors import ConfigError
from models.errors import ShapeError
from tasks.errors import InputError
from tasks.machine.check import Check, first_line
from workflow.cluster import WorkerError


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
    faults: list[str] = field(default_factory=list)

    def ok(self, what: str) -> None:
        """Note what is as it should be."""
        self.seen.append(what)

    def warning(self, what: str, remedy: str) -> None:
        """Note what is odd and what to do about it."""
        self.remarks.append((what, remedy))

    def failure(self, message: str) -> None:
        """Note what would make the real run fail; the same message counts once."""
        if message not in self.faults:
            self.faults.append(message)

    def made(self) -> Check:
        """The check as it stands."""
        if self.faults:
            said, remedies = zip(*(parts(message, self.remedy) for message in self.faults), strict=True)
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
        except (ConfigError, InputError, ShapeError, WorkerError) as error:
            attempt.failure(message(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the run would meet it too
            attempt.failure(f"Cannot finish {tried}: {type(error).__name__}: {first_line(error)}.")
        self.checks.append(attempt.made())
        self.faults += [" ".join(parts(fault, remedy)) for fault in attempt.faults]


def message(error: Exception) -> str:
    """What an error says, as one message that ends."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if said.endswith((".", "!", "?")) else f"{said}."


def parts(fault: str, remedy: str) -> tuple[str, str]:
    """Part a fault from the remedy that ends its message.

    Args:
        fault: As errors of this package say it: what cannot be done, why, and what to do.
        remedy: Where the last says nothing.

    >>> parts("Cannot read a.nii.gz: it was cut short. Copy it again.", "Leave it out.")
    ('Cannot read a.nii.gz: it was cut short.', 'Copy it again.')
    >>> parts("Cannot read a.nii.gz: the file is empty.", "Leave it out.")
    ('Cannot read a.nii.gz: the file is empty.', 'Leave it out.')
    """
    what, end, rest = fault.partition(". ")
    if end and re.match(r"[A-Z]", rest):
        return f"{what}.", rest
    return fault, remedy


def counted(number: int, thing: str) -> str:
    """A number of things.

    >>> counted(1, "node"), counted(3, "GPU")
    ('1 node', '3 GPUs')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _lines(said: Iterable[str]) -> str:
    return "\n".join(dict.fromkeys(said))
