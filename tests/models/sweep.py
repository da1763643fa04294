"""The sweep: sizes 1–12, kernels 1–6, strides 1–4, both paddings, every dilation and output padding that is legal."""

from itertools import groupby, product

import numpy as np

from models.stages.stage import Axis, Stage

SIZES, KERNELS, STRIDES, DILATIONS, PADDINGS = range(1, 13), range(1, 7), range(1, 5), range(1, 4), ("same", "valid")


def geometries():
    """(kernel, stride, dilation): a dilation only where the stride is 1."""
    return [(k, s, d) for k, s, d in product(KERNELS, STRIDES, DILATIONS) if s == 1 or d == 1]


def axes():
    """Every axis, with every output padding that makes a layer."""
    for (k, s, d), padding in product(geometries(), PADDINGS):
        for added in (None, *range(s)):
            axis = Axis(k, s, d, padding, added)
            if axis.tail >= 1:
                yield axis


def stages():
    """Stages of three axes each in which every axis occurs: axes are independent, so this is every case there is."""

    def alike(axis):
        return axis.padding, axis.output_padding is None, axis.dilation_rate > 1

    for (padding, plain, _), group in groupby(sorted(axes(), key=alike), key=alike):
        case = list(group)
        shuffled = [case[i] for i in np.random.default_rng(0).permutation(len(case))]
        shuffled += shuffled[: -len(shuffled) % 3]
        for three in zip(shuffled[::3], shuffled[1::3], shuffled[2::3], strict=True):
            kernel, strides, dilation, added = (
                tuple(getattr(axis, name) for axis in three)
                for name in ("kernel_size", "stride", "dilation_rate", "output_padding")
            )
            yield Stage(1, kernel, strides, dilation, padding, None if plain else added)


def sizes_of_inputs():
    """Depth, height and width that differ, each through all sizes."""
    return [(size, (size + 4) % 12 + 1, (size + 8) % 12 + 1) for size in SIZES]
