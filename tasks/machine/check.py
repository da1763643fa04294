"""A check of what a machine can do: what was tried, what was seen, the verdict, the remedy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from configs.errors import VoxliftError

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """A check that was made.

    Args:
        name: What was checked.
        tried: How.
        seen: What came of it.
        status: "ok"; "warning" where work goes on, but not as well as it could; "failed" where it cannot.
        remedy: What to do about it; None where there is nothing to do.
    """

    name: str
    tried: str
    seen: str
    status: Status = "ok"
    remedy: str | None = None


@dataclass(frozen=True)
class Seen:
    """Result of an examination.

    Args:
        seen: One line.
        status: As in `Check`.
        remedy: As in `Check`; where it is not ok, in place of the check's own.
    """

    seen: str
    status: Status = "ok"
    remedy: str | None = None


def checked(name: str, tried: str, examine: Callable[[], Seen], remedy: str) -> Check:
    """Make a check; whatever is raised on the way is what was seen, and the check has failed.

    Args:
        name: What is checked.
        tried: How.
        examine: Does it.
        remedy: What to do where the examination does not say so itself.
    """
    try:
        found = examine()
    except VoxliftError as error:
        return Check(name, tried, error.problem.removesuffix("."), "failed", error.remedy or remedy)
    except Exception as error:  # noqa: BLE001 - one failing check never stops the others
        return Check(name, tried, f"{type(error).__name__}: {first_line(error)}", "failed", remedy)
    return Check(name, tried, found.seen, found.status, None if found.status == "ok" else found.remedy or remedy)


def not_tried(name: str, tried: str, missing: str) -> Check:
    """A check that could not be made, because another one failed."""
    return Check(name, tried, f"not tried: it needs {missing}", "failed", f"Fix what the check of {missing} says.")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
