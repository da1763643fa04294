"""The error that bad input raises."""


class InputError(ValueError):
    """Input that cannot be used: the message names the file, the rule, what was received and the remedy."""
