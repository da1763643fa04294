"""What ends a run for no fault of its input."""


class RunError(RuntimeError):
    """A run that failed for no fault of the input: what happened, in one line; exit status 1."""
