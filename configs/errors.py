"""The errors of voxlift, one hierarchy.

`problem` says what cannot be done, the rule and what was received; `remedy` says what to do about it.
"""

from collections.abc import Iterator
from typing import ClassVar


def chained(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, then its cause or else its context, and so on; each once, though they may form a ring.

    >>> one, other = OSError("one"), OSError("other")
    >>> one.__cause__, other.__context__ = other, one
    >>> [str(error) for error in chained(one)]
    ['one', 'other']
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


class VoxliftError(Exception):
    """An error that is reported to the user without a traceback; its exit status is 1.

    Args:
        problem: What cannot be done, the rule, and what was received.
        remedy: What to do about it; empty where nothing is known.

    >>> error = VoxliftError("Cannot read a.nii: it is truncated.", "Copy it again.")
    >>> str(error), error.remedy
    ('Cannot read a.nii: it is truncated. Copy it again.', 'Copy it again.')
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".rstrip()


class UsageError(VoxliftError, ValueError):
    """Something that was given cannot be used; the exit status is 2."""

    exit_status = 2


class ConfigError(UsageError):
    """A configuration that cannot be used: the problem names the file, the key and what was received."""


class ShapeError(UsageError):
    """An impossible shape: the problem names the axis, the rule, and the shapes that would do."""


class InputError(UsageError):
    """Input that cannot be used: the problem names the file, the rule and what was received."""


class ReadError(InputError):
    """A file that cannot be read.

    Args:
        name: Of the file.
        reason: Why, as a clause without a full stop.
        remedy: What to do about it.

    >>> str(ReadError("a.nii", "it is truncated", "Copy it again."))
    'Cannot read a.nii: it is truncated. Copy it again.'
    """

    def __init__(self, name: str, reason: str, remedy: str = "") -> None:
        super().__init__(f"Cannot read {name}: {reason}.", remedy)
        self.name, self.reason = name, reason
        self.args = (name, reason, remedy)  # by which it is pickled


class RunError(VoxliftError, RuntimeError):
    """A run that failed for another reason than its input."""


class NotFiniteError(RunError, ValueError):
    """A result with NaN or infinities, which the same work would give again; the problem is a clause about it."""


class ContractError(VoxliftError, RuntimeError):
    """An artifact violates its contract: the problem names the axis."""


class ContractsError(ContractError):
    """A `contracts.json` that does not exist or cannot be read; the problem is a clause about it."""


class AbandonedError(VoxliftError):
    """A volume was given up while its writer waited for shards; the problem names its output."""
