"""The error that a configuration raises."""


class ConfigError(ValueError):
    """A configuration that cannot be used: the message names the file, the key, what was received and the remedy."""
