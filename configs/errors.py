"""The errors of voxlift, one hierarchy.

    VoxliftError                exit status 1
    ├── UsageError              exit status 2: what was given is wrong
    │   ├── ConfigError         a configuration
    │   ├── ShapeError          a shape or a stage
    │   └── InputError          a file or another input
    ├── RunError                a run failed through no fault of its input
    └── ContractError           an artifact violates its contract

`problem` says what cannot be done, the rule and what was received; `remedy` says what to do about it.
"""

from typing import ClassVar


class VoxliftError(Exception):
    """An error that is reported to the user without a traceback.

    Args:
        problem: What cannot be done, the rule, and what was received.
        remedy: What to do about it; empty where nothing is known.

    >>> error = VoxliftError("Cannot read a.nii: it was cut short.", "Copy it again.")
    >>> str(error), error.remedy
    ('Cannot read a.nii: it was cut short. Copy it again.', 'Copy it again.')
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".rstrip()


class UsageError(VoxliftError, ValueError):
    """Something that was given cannot be used."""

    exit_status = 2


class ConfigError(UsageError):
    """A configuration that cannot be used: the problem names the file, the key and what was received."""


class ShapeError(UsageError):
    """An impossible shape: the problem names the axis, the rule, and the shapes that would do."""


class InputError(UsageError):
    """Input that cannot be used: the problem names the file, the rule and what was received."""


class RunError(VoxliftError, RuntimeError):
    """A run that failed through no fault of its input."""


class ContractError(VoxliftError, RuntimeError):
    """An artifact violates its contract: the problem names the axis."""
