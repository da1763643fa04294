"""Start a network from one with fewer channels, which it then equals."""

import keras
import numpy as np
from numpy.typing import NDArray

Weights = list[NDArray[np.float32]]


def widened_weights(wide: keras.Model, narrow: keras.Model) -> Weights | None:
    """Return weights with which a network computes what another with fewer channels computes.

    Channels that the narrow network lacks keep the weights by which the wide one computes them, and nothing that both
    have reads them: they join in as training gives them weight (function-preserving, after Chen, Goodfellow and
    Shlens, "Net2Net", ICLR 2016).

    Args:
        wide: Layers as `build_restorer` builds them.
        narrow: The same layers, by name, with as many channels or fewer; fewer only where both add their skips.

    Returns:
        As `wide.get_weights`; None where the two differ in more than their channels.
    """
    names = [[layer.name for layer in model.layers] for model in (wide, narrow)]
    shapes = [[weight.shape for weight in model.weights] for model in (wide, narrow)]
    concatenates = any(isinstance(layer, keras.layers.Concatenate) for layer in (*wide.layers, *narrow.layers))
    if names[0] != names[1] or (concatenates and shapes[0] != shapes[1]):
        return None
    found: Weights = []
    for layer, given in zip(wide.layers, narrow.layers, strict=True):
        for fresh, value in zip(layer.get_weights(), given.get_weights(), strict=True):
            if (
                fresh.ndim != value.ndim
                or any(np.less(fresh.shape, value.shape))
                or fresh.shape[:-2] != value.shape[:-2]
            ):
                return None
            transposed = isinstance(layer, keras.layers.Conv3DTranspose)
            found.append(_widened(fresh, value, reads=-1 if transposed else -2))
    return found


def _widened(fresh: NDArray[np.float32], value: NDArray[np.float32], *, reads: int) -> NDArray[np.float32]:
    """Put a kernel or a bias into a larger one; `reads` is the axis of a kernel along which it reads channels."""
    kept = np.array(fresh)
    both = tuple(map(slice, value.shape))
    if value.ndim > 1:
        # What both networks compute reads no channel that the narrow one lacks.
        computed = list(both)
        computed[reads] = slice(None)
        kept[tuple(computed)] = 0
    kept[both] = value
    return kept
