"""The integer arithmetic of a stage (one transposed convolution) along each axis, and that of a chain of stages.

Along an axis a stage scatters: by tap `t`, input voxel `n` reaches output voxel `n * stride + t * dilation - before`.
Everything else here follows from it: which sizes are possible, which taps meet in a voxel, where the image ends up.

Tracing output voxel `j` backwards through a stage gives input
voxels `ceil((j + before - span + 1) / stride)` to `floor((j + before) / stride)`. Nested floors and ceilings of this
form merge into one, `floor((j + a) / S)` with the product `S` of the strides, and so do the positions of voxel centres,
so a chain along an axis is four integers and nothing is traced voxel by voxel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

from configs.axes import AXES, Triple, triple
from configs.errors import ShapeError
from configs.schema import Network
from models.stages.wording import by, options

LARGEST = 1024  # of kernel, stride and dilation: every phase and every tap is counted


@dataclass(frozen=True)
class Axis:
    """One axis of a stage.

    Args:
        kernel_size: Taps.
        stride: Output voxels per input voxel.
        dilation_rate: Output voxels between two taps.
        padding: "same" or "valid".
        output_padding: Voxels beyond the smallest output, or None for the size that Keras takes by itself.
    """

    kernel_size: int
    stride: int
    dilation_rate: int = 1
    padding: str = "same"
    output_padding: int | None = None

    @property
    def span(self) -> int:
        """Output voxels from the first tap to the last, both counted."""
        return (self.kernel_size - 1) * self.dilation_rate + 1

    @property
    def tail(self) -> int:
        """Output voxels that the last input voxel adds: the output has `(size - 1) * stride + tail`."""
        if self.padding == "same":
            return self.stride if self.output_padding is None else self.span % 2 + self.output_padding
        return max(self.span, self.stride) if self.output_padding is None else self.span + self.output_padding

    @property
    def crop(self) -> tuple[int, int]:
        """Voxels cropped before and after what the taps reach; a negative number after is rows of zeros added.

        >>> Axis(kernel_size=3, stride=2).crop, Axis(kernel_size=4, stride=2).crop, Axis(kernel_size=3, stride=4).crop
        ((0, 1), (1, 1), (0, -1))
        """
        excess = self.span - self.tail
        before = max(0, excess) // 2 if self.padding == "same" else 0
        return before, excess - before

    @property
    def overlap(self) -> tuple[int, ...]:
        """Taps that reach each output phase, `output index modulo stride`, away from the border.

        >>> Axis(kernel_size=3, stride=2).overlap, Axis(kernel_size=3, stride=4).overlap
        ((2, 1), (1, 1, 1, 0))
        """
        counts, before = [0] * self.stride, self.crop[0]
        for tap in range(self.kernel_size):
            counts[(tap * self.dilation_rate - before) % self.stride] += 1
        return tuple(counts)

    @property
    def shift(self) -> float:
        """Shift of the image by equal taps, towards higher indices, in voxels of the output.

        Input and output are laid centre on centre. With `size * stride` output voxels, both have the same field
        of view, and input voxel `n` belongs at `n * stride + (stride - 1) / 2`. The taps put its centre of mass at
        `n * stride + (span - 1) / 2 - before`. For any size the difference is half of that between the
        voxels cropped after and before.

        >>> [Axis(kernel_size=k, stride=s).shift for k, s in ((3, 2), (4, 2), (1, 4))]
        [0.5, 0.0, -1.5]
        """
        before, after = self.crop
        return (after - before) / 2

    def output_size(self, size: int) -> int:
        """Output size of the Keras layer, from an input size."""
        return (size - 1) * self.stride + self.tail

    def forward_size(self, output_size: int) -> int:
        """Size that the forward convolution makes of an output: the input size that this output belongs to."""
        if self.padding == "same":
            return -(-output_size // self.stride)
        return max(0, (output_size - self.span + self.stride) // self.stride)

    def accepted_sizes(self, size: int) -> range:
        """Output sizes that `tf.nn` accepts for an input size: those that the forward convolution brings back to it.

        >>> list(Axis(kernel_size=3, stride=2).accepted_sizes(7))
        [13, 14]
        """
        smallest = (size - 1) * self.stride + (1 if self.padding == "same" else self.span)
        return range(smallest, smallest + self.stride)

    def strides_between(self, size: int, output_size: int) -> list[int]:
        """Strides with which an output size would be accepted for an input size.

        >>> Axis(kernel_size=3, stride=1).strides_between(7, 14)
        [2]
        """
        strides = range(1, min(output_size, LARGEST) + 1)
        return [stride for stride in strides if replace(self, stride=stride).forward_size(output_size) == size]


@dataclass(frozen=True)
class Stage:
    """One transposed convolution, in Keras' terms; three numbers are (depth, height, width).

    Args:
        filters: Output channels.
        kernel_size: Taps per axis.
        strides: Output voxels per input voxel, per axis.
        dilation_rate: Output voxels between two taps, per axis; above 1 only where every stride is 1.
        padding: "same" or "valid".
        output_padding: Voxels beyond the smallest output, per axis, each below the stride; None for Keras' own size.

    Raises:
        ShapeError: Where no layer and no operation can be made of it.
    """

    filters: int
    kernel_size: Triple
    strides: Triple
    dilation_rate: Triple = (1, 1, 1)
    padding: str = "same"
    output_padding: Triple | None = None

    def __post_init__(self) -> None:
        if self.filters < 1:
            self._refuse("filters is the number of output channels, 1 or more", f"filters={self.filters}")
        if self.padding not in {"same", "valid"}:
            self._refuse("padding is 'same' or 'valid'", f"padding={self.padding!r}")
        for name in ("kernel_size", "strides", "dilation_rate"):
            for axis, value in zip(AXES, getattr(self, name), strict=True):
                if not 1 <= value <= LARGEST:
                    self._refuse(f"{axis}: {name} is 1 to {LARGEST}", f"{name}={by(getattr(self, name))}")
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            strided, dilated = (AXES[values.index(max(values))] for values in (self.strides, self.dilation_rate))
            self._refuse(
                f"a stride above 1 (here on {strided}) excludes a dilation above 1 (here on {dilated}), on any axis;"
                " use stride 1 everywhere or dilation 1 everywhere",
                f"strides={by(self.strides)}, dilation_rate={by(self.dilation_rate)}",
            )
        if self.output_padding is not None:
            self._check_output_padding(self.output_padding)

    def _check_output_padding(self, output_padding: Triple) -> None:
        received = f"output_padding={by(output_padding)}"
        for name, axis, padding in zip(AXES, self.axes, output_padding, strict=True):
            if not 0 <= padding < axis.stride:
                self._refuse(
                    f"{name}: output_padding is at least 0 and below the stride {axis.stride};"
                    f" {options(range(axis.stride))} would do",
                    received,
                )
            if axis.tail < 1:
                self._refuse(
                    f"{name}: output_padding 0 with an even kernel leaves (size - 1) * stride voxels, which the forward"
                    " convolution brings back to size - 1; none at all"
                    + (f", {options(range(1, axis.stride))}" if axis.stride > 1 else "")
                    + " or an odd kernel would do",
                    f"{received}, kernel_size={by(self.kernel_size)}",
                )

    @staticmethod
    def _refuse(rule: str, received: str) -> NoReturn:
        raise ShapeError(f"No such stage: {rule}. Received {received}.")

    @cached_property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        """The stage along depth, height and width."""
        padding = self.output_padding or (None, None, None)
        return triple(map(Axis, self.kernel_size, self.strides, self.dilation_rate, [self.padding] * 3, padding))

    def weights_shape(self, channels: int) -> tuple[int, int, int, int, int]:
        """Shape of the weights in TensorFlow's layout, (depth, height, width, out, in), for so many input channels."""
        return (*self.kernel_size, self.filters, channels)


def network_stages(network: Network) -> tuple[Stage, ...]:
    """Return the stages of a configured network, whose padding is "same" and whose output padding is Keras' own."""
    return tuple(Stage(stage.filters, stage.kernel_size, stage.strides) for stage in network.stages)


def latent_receptive_field(stages: Sequence[Stage]) -> tuple[tuple[int, int], ...]:
    """Receptive field of an output voxel, in latent voxels.

    Args:
        stages: From the latent to the output.

    Returns:
        Per axis (before, after): latent voxels that some output voxel depends on before and after its own. Its own is
        the latent voxel in whose place it lies, latent and output laid centre on centre.

    >>> clean, lopsided = Stage(1, (4, 4, 4), (2, 2, 2)), Stage(1, (3, 3, 3), (2, 2, 2))
    >>> latent_receptive_field([clean])[0], latent_receptive_field([lopsided])[0]
    ((1, 1), (1, 0))
    """
    return tuple(map(_latent_reach, zip(*(stage.axes for stage in stages), strict=True)))


def _latent_reach(axes: Sequence[Axis]) -> tuple[int, int]:
    total, first, last, centre = 1, 0, 0, 0  # own = floor((2j - centre + total) / 2total)
    for axis in reversed(axes):
        first += total * (axis.crop[0] - axis.span + 1)
        last += total * axis.crop[0]
        centre += total * (axis.tail - 1)
        total *= axis.stride
    own = (total - centre) // 2
    # The largest floor((j + a) / S) - ceil((j + b) / S) over all j is floor((a - b) / S); likewise on the other side.
    return max(0, (own - first) // total), max(0, -((own - last) // total))


def accumulated_shift(stages: Sequence[Stage]) -> tuple[float, float, float]:
    """Shift of the image by a chain of equal taps, towards higher indices, in voxels of the last output.

    Dividing by the total stride gives it in voxels of the latent. Each stage's own shift, `Axis.shift`, is in voxels of
    its own output, which the strides after it make larger.

    >>> accumulated_shift([Stage(1, (3, 3, 3), (2, 2, 2)), Stage(1, (3, 3, 3), (1, 2, 2))])
    (0.5, 1.5, 1.5)
    """
    shifts = (0.0, 0.0, 0.0)
    for stage in stages:
        shifts = triple(shift * axis.stride + axis.shift for shift, axis in zip(shifts, stage.axes, strict=True))
    return shifts
