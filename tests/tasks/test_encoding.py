"""Voxels on disk: rounded, clipped, never wrapped or quantised silently."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.errors import InputError
from tasks.volume.encoding import WRITABLE, Encoding, choose_encoding

INTEGERS = [name for name in WRITABLE if np.dtype(name).kind in "iu"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_rounded_and_clipped_at_their_ends(dtype):
    limits = np.iinfo(dtype)
    voxels = np.array([1.4, 1.6, -1e30, 1e30, np.inf, -np.inf, np.nan], np.float32)
    found = Encoding(dtype).encode(voxels)
    assert found.dtype == dtype
    nearly_highest = [limits.max - limits.max // 2**50, limits.max]
    assert found[:3].tolist() == [1, 2, limits.min]
    assert all(nearly_highest[0] <= value <= nearly_highest[1] for value in found[3:5].tolist())
    assert found[5:].tolist() == [limits.min, 0]


@given(st.sampled_from(["uint8", "int16", "int32"]), st.floats(1e-3, 50), st.floats(-1e3, 1e3), st.data())
def test_slope_and_intercept_are_undone_by_a_reader(dtype, slope, inter, data):
    limits = np.iinfo(dtype)
    steps = data.draw(st.lists(st.integers(max(limits.min, -30000), min(limits.max, 30000)), min_size=1, max_size=20))
    voxels = (np.array(steps) * slope + inter).astype(np.float32)
    stored = Encoding(dtype, slope, inter).encode(voxels)
    np.testing.assert_allclose(np.asarray(stored, float) * slope + inter, voxels, atol=slope * 0.51 + 1e-2)


@pytest.mark.parametrize(
    ("stored", "slope", "inter", "wanted", "expected"),
    [
        ("i2", 1, 0, None, Encoding("int16")),
        (">i2", 0.5, 3, None, Encoding("int16", 0.5, 3)),
        ("f8", 1, 0, None, Encoding("float32")),
        ("f4", 2, 1, None, Encoding("float32")),
        ("i2", 0.5, 3, "int32", Encoding("int32", 0.5, 3)),
        ("i2", 0.5, 3, "float32", Encoding("float32")),
        ("i2", 1, 0, "float64", Encoding("float64")),
        ("i4", 1, 0, "int16", Encoding("int16")),
    ],
)
def test_the_dtype_of_the_input_is_kept_or_the_one_asked_for_is_used(stored, slope, inter, wanted, expected):
    assert choose_encoding(stored, slope, inter, wanted, (0, 900)) == expected


def test_floats_as_integers_get_a_slope_that_spans_them():
    chosen = choose_encoding("f4", 1, 0, "int16", (0.0, 1.0))
    voxels = np.linspace(-0.05, 1.05, 1000, dtype=np.float32)
    back = np.asarray(chosen.encode(voxels), float) * chosen.slope + chosen.inter
    np.testing.assert_allclose(back, voxels, atol=2e-5)


def test_wide_integers_that_do_not_fit_get_a_slope_too():
    chosen = choose_encoding("i4", 1, 0, "uint8", (0.0, 100_000.0))
    assert chosen.slope > 300


@pytest.mark.parametrize("wanted", ["complex64", "shorts", np.float16])
def test_an_unknown_dtype_is_refused_with_those_there_are(wanted):
    with pytest.raises(InputError, match="uint8, int8, uint16"):
        choose_encoding("i2", 1, 0, wanted, None)
