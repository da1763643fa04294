"""The error that arithmetic on shapes raises."""


class ShapeError(ValueError):
    """A shape that cannot be: the message says which axis, which rule, and which shapes would do."""
