"""Options of the command line in the remedies of errors, where a task knows only the setting."""

from collections.abc import Iterator
from contextlib import contextmanager

from configs.errors import InputError
from tasks.sharding.plan import BudgetError


@contextmanager
def naming_options() -> Iterator[None]:
    """Name the option of `upscale`, `evaluate` and `promote` in the remedy of an error that an option would fix.

    Raises:
        InputError: The same error, with that remedy.
    """
    try:
        yield
    except BudgetError as error:
        raise InputError(error.problem, f"Raise --memory-budget to {error.least_mib} or more.") from error
