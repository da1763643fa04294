"""Losses: named errors of a batch of patches, each one number per patch, and their weighted sum."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Stack = NDArray[np.float32]
SPACE = (1, 2, 3)
SMOOTH = 1e-3  # of the Charbonnier error, where it turns from square to absolute
TYPICAL_INPUT_ERROR = 0.04  # root mean square, in normalised intensity: an input that far from its target weighs 1
MIN_INPUT_ERROR = 0.01  # likewise: below it a patch weighs no more
WINDOW = 7  # voxels of the SSIM window along each axis


@dataclass(frozen=True, eq=False)
class PatchDegradation:
    """The degradation of each patch of a batch, for each axis or None where an axis stays.

    Args:
        matrices: From fine to coarse, float32 `[batch, coarse, fine]` each.
        fine_bases: Orthonormal bases of what the degradation shows, float32 `[batch, fine, rank]` each.
        seen: Share of each coefficient that a correction restores, float32 `[batch, rank, rank, rank]`; where an axis
            stays, its size takes the place of the rank.
    """

    matrices: Sequence[tf.Tensor | None]
    fine_bases: Sequence[tf.Tensor | None]
    seen: tf.Tensor

    def degrade(self, fine: tf.Tensor) -> tf.Tensor:
        """Degrade patches `(batch, depth, height, width, 1)` to `(batch, depth, height, width)`, coarse."""
        return _along(self.matrices, fine[..., 0])

    def null_space(self, error: tf.Tensor) -> tf.Tensor:
        """Return the part of an error that the data consistency correction leaves, in the shape of `error`.

        The correction takes away all that shows in the coarse patch; the network need not spend itself on it.
        """
        plain = error[..., 0]
        transposed = [None if basis is None else tf.transpose(basis, (0, 2, 1)) for basis in self.fine_bases]
        return (plain - _along(self.fine_bases, _along(transposed, plain) * self.seen))[..., None]


@dataclass(frozen=True, eq=False)
class PatchDegradations:
    """The degradations that patches are drawn from, one entry per degradation, for each axis or None where it stays.

    Args:
        matrices: From fine to coarse, float32 `[degradation, coarse, fine]` each, zero beyond the coarse patch.
        fine_bases: Orthonormal bases of what the degradation shows, float32 `[degradation, fine, rank]` each, zero
            beyond the rank.
        squared_singular: Squared singular values, float32 `[degradation, rank]` each, zero beyond the rank; ones where
            the axis stays.
    """

    matrices: Sequence[Stack | None]
    fine_bases: Sequence[Stack | None]
    squared_singular: Sequence[NDArray[np.float32]]

    def of_patches(self, number: tf.Tensor, damping: tf.Tensor) -> PatchDegradation:
        """Choose the degradation of each patch.

        Args:
            number: Of the degradation, int32 `[batch]`.
            damping: Of its correction, float32 `[batch]`; see `tasks.imaging.consistency`.
        """

        def chosen(stacks: Sequence[Stack | None]) -> list[tf.Tensor | None]:
            return [None if stack is None else tf.gather(stack, number) for stack in stacks]

        depth, height, width = (tf.gather(squared, number) for squared in self.squared_singular)
        squared = depth[:, :, None, None] * height[:, None, :, None] * width[:, None, None, :]
        seen = squared / (squared + damping[:, None, None, None])
        return PatchDegradation(chosen(self.matrices), chosen(self.fine_bases), seen)


Loss = Callable[[tf.Tensor, tf.Tensor, PatchDegradation], tf.Tensor]


def l1(target: tf.Tensor, output: tf.Tensor, _: PatchDegradation) -> tf.Tensor:
    """Mean absolute error."""
    return tf.reduce_mean(tf.abs(output - target), axis=(*SPACE, 4))


def l2(target: tf.Tensor, output: tf.Tensor, _: PatchDegradation) -> tf.Tensor:
    """Mean squared error, what PSNR measures."""
    return tf.reduce_mean(tf.square(output - target), axis=(*SPACE, 4))


def charbonnier(target: tf.Tensor, output: tf.Tensor, _: PatchDegradation) -> tf.Tensor:
    """Absolute error with a round bottom (Charbonnier et al., Proc. ICIP, 1994)."""
    return tf.reduce_mean(tf.sqrt(tf.square(output - target) + SMOOTH**2) - SMOOTH, axis=(*SPACE, 4))


def gradient(target: tf.Tensor, output: tf.Tensor, _: PatchDegradation) -> tf.Tensor:
    """Mean absolute error of the differences between neighbours, over the three axes."""
    error = output - target
    steps = (error[:, 1:] - error[:, :-1], error[:, :, 1:] - error[:, :, :-1], error[:, :, :, 1:] - error[:, :, :, :-1])
    return tf.add_n([tf.reduce_mean(tf.abs(step), axis=(*SPACE, 4)) for step in steps]) / 3.0


def ssim(target: tf.Tensor, output: tf.Tensor, _: PatchDegradation) -> tf.Tensor:
    """One less the structural similarity, data range 1, in uniform windows of 7 voxels inside the patch.

    Source: Wang et al., IEEE Trans. Image Process. 13, 2004.
    """
    mean_x, mean_y = _window(target), _window(output)
    variance_x = _window(target * target) - mean_x**2
    variance_y = _window(output * output) - mean_y**2
    covariance = _window(target * output) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return 1.0 - tf.reduce_mean(similarity, axis=(*SPACE, 4))


def consistency(target: tf.Tensor, output: tf.Tensor, degradation: PatchDegradation) -> tf.Tensor:
    """Mean squared error of the degraded output against the degraded target."""
    return tf.reduce_mean(tf.square(degradation.degrade(output - target)), axis=SPACE)


def null_space(target: tf.Tensor, output: tf.Tensor, degradation: PatchDegradation) -> tf.Tensor:
    """Mean squared error that the data consistency correction leaves."""
    return tf.reduce_mean(tf.square(degradation.null_space(output - target)), axis=(*SPACE, 4))


LOSSES: dict[str, Loss] = {
    loss.__name__: loss for loss in (l1, l2, charbonnier, gradient, ssim, consistency, null_space)
}


def relative_weight(resampled: tf.Tensor, target: tf.Tensor, power: float) -> tf.Tensor:
    """Weigh patches, float32 `(batch,)`, by a power of the squared error of their inputs.

    With the power 1 a gain in decibels counts the same for smooth and for sharp anatomy.

    >>> target = tf.zeros((1, 2, 2, 2, 1))
    >>> round(float(relative_weight(target + 0.04, target, 1.0)[0]), 3)
    0.941
    """
    error = tf.reduce_mean(tf.square(resampled - target), axis=(*SPACE, 4))
    return tf.pow(TYPICAL_INPUT_ERROR**2 / (error + MIN_INPUT_ERROR**2), power)


def weighted(weights: Mapping[str, float]) -> Loss:
    """Make the loss that training minimises.

    Args:
        weights: By name of a loss.

    Returns:
        A function of targets and outputs, float32 `(batch, depth, height, width, 1)`, and of the degradation of each
        patch to float32 `(batch,)`.
    """

    def loss(target: tf.Tensor, output: tf.Tensor, degradation: PatchDegradation) -> tf.Tensor:
        return tf.add_n([weight * LOSSES[name](target, output, degradation) for name, weight in weights.items()])

    return loss


def _along(matrices: Sequence[tf.Tensor | None], voxels: tf.Tensor) -> tf.Tensor:
    """Multiply each axis of `(batch, depth, height, width)` by the patch's matrix."""
    for matrix, equation in zip(matrices, ("bij,bjyx->biyx", "bij,bzjx->bzix", "bij,bzyj->bzyi"), strict=True):
        if matrix is not None:
            voxels = tf.einsum(equation, matrix, voxels)
    return voxels


def _window(voxels: tf.Tensor) -> tf.Tensor:
    size = [min(WINDOW, extent) for extent in voxels.shape[1:4]]
    return tf.nn.avg_pool3d(voxels, (1, *size, 1), (1, 1, 1, 1, 1), "VALID")
