"""The precisions in which a network restores."""

from typing import Literal

# TF32 reads the values of a convolution with 10 bits of mantissa, bfloat16 keeps 7 of every intermediate value; both
# add up in float32.
Precision = Literal["float32", "tf32", "bfloat16"]
