"""The shape contract of a tensor: its shape and dtype, and the check that an array satisfies it."""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.errors import ContractError


@dataclass(frozen=True)
class TensorContract:
    """The contract of a tensor.

    Args:
        axes: Name of each axis.
        shape: Size of each axis, None where it is free.
        dtype: Name of the element type.

    >>> volume = TensorContract(("depth", "height", "width"), (None, 112, 112), "float32")
    >>> volume.require("the latent", (16, 112, 111), "float32")
    Traceback (most recent call last):
    ...
    configs.errors.ContractError: the latent departs from its contract: width must be 112, received 111.
    """

    axes: tuple[str, ...]
    shape: tuple[int | None, ...]
    dtype: str

    def require(self, what: str, shape: Sequence[int], dtype: str) -> None:
        """Check a tensor.

        Args:
            what: The tensor, as the message should name it.
            shape: Its shape.
            dtype: Name of its element type.

        Raises:
            ContractError: It is violated; the message names the axis, the contract and what was received.
        """
        if len(shape) != len(self.axes):
            raise ContractError(
                f"{what} departs from its contract: it must have the axes {', '.join(self.axes)}, "
                f"received the shape {tuple(shape)}."
            )
        for axis, output_contract, received in zip(self.axes, self.shape, shape, strict=True):
            if output_contract is not None and output_contract != received:
                raise ContractError(
                    f"{what} departs from its contract: {axis} must be {output_contract}, received {received}."
                )
        if dtype != self.dtype:
            raise ContractError(f"{what} departs from its contract: its type must be {self.dtype}, received {dtype}.")
