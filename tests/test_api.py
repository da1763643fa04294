"""The Python interface: from image to image in this process, without Ray and without a tracking store."""

import itertools
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from configs.axes import NetworkShape
from configs.degradation import named_degradation
from configs.errors import InputError
from tasks.imaging.consistency import consistent_interpolation
from tests.networks import small_restorer
from voxlift import Restorer


@pytest.fixture(scope="module")
def restore():
    return Restorer()


def image(shape, spacing=(1.0, 1.0, 1.0), dtype=np.int16):
    voxels = np.random.default_rng(0).gamma(2.0, 300.0, size=shape).astype(dtype)
    return nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0]))


def test_an_image_becomes_finer_over_the_same_field_of_view(restore):
    given = image((12, 14, 16), (1.0, 2.0, 1.5))
    found = restore(given)
    assert found.shape == (24, 28, 32)
    assert found.get_data_dtype() == np.int16
    corner = np.array([-0.5, -0.5, -0.5, 1.0])
    np.testing.assert_allclose(found.affine @ corner, given.affine @ corner)
    again = np.asarray(found.dataobj).reshape(12, 2, 14, 2, 16, 2).mean(axis=(1, 3, 5))
    assert np.corrcoef(again.ravel(), np.asarray(given.dataobj).ravel())[0, 1] > 0.9


def test_the_geometry_and_the_options_choose_the_grid(restore):
    assert restore(image((12, 14, 6), (1.0, 1.0, 4.0))).shape == (12, 14, 24)
    assert restore(image((12, 14, 16)), scale=1.5).shape == (18, 21, 24)
    assert restore(image((12, 14, 16)), spacing=(0.5, 1, 1)).shape == (24, 14, 16)
    assert restore(image((12, 14, 16, 2))).shape == (24, 28, 32, 2)


def test_what_is_known_of_the_acquisition_and_the_type_count(restore):
    given = image((12, 14, 16))
    assumed, known = restore(given, dtype="float32"), restore(given, acquisition="box", dtype="float32")
    assert known.get_data_dtype() == np.float32
    assert not np.allclose(assumed.dataobj, known.dataobj, atol=1)


def test_less_of_the_networks_detail_is_kept_where_the_acquisition_is_a_guess():
    # Named, the network is the same for both: no expert takes over.
    restore = Restorer(Path(__file__).parents[1] / "models/weights/universal2x.keras")
    voxels = gaussian_filter(np.random.default_rng(0).normal(size=(16, 16, 16)), 1.2).astype(np.float32)
    given, shape, recipe = (
        nibabel.Nifti1Image(voxels, np.eye(4)),
        NetworkShape(32, 32, 32),
        named_degradation("kspace2x"),
    )
    guessed, known = (
        np.asarray(restore(given, acquisition=profile, dtype="float32").dataobj) for profile in (None, "kspace")
    )
    scanned = consistent_interpolation(voxels, shape, recipe)
    detail = known - scanned
    assert 0.7 < np.vdot(guessed - scanned, detail) / np.vdot(detail, detail) < 0.95


def test_an_ensemble_averages_the_mirror_images(restore):
    noise = np.random.default_rng(0).normal(size=(16, 16, 8)).astype(np.float32)
    voxels = gaussian_filter(noise, 1)  # signed: nothing is clipped at 0
    given, found = nibabel.Nifti1Image(voxels, np.eye(4)), np.zeros((32, 32, 16))
    for axes in [axes for count in range(4) for axes in itertools.combinations(range(3), count)]:
        mirrored = nibabel.Nifti1Image(np.flip(voxels, axes), given.affine)
        found += np.flip(np.asarray(restore(mirrored, dtype="float32").dataobj), axes) / 8
    single, ensemble = (np.asarray(one(given, dtype="float32").dataobj) for one in (restore, Restorer(ensemble=8)))
    # Not exactly: each image is corrected by as much as it lacks.
    assert np.abs(ensemble - found).mean() < 0.1 * np.abs(single - found).mean()


def test_bfloat16_gives_nearly_the_same(restore):
    given = image((12, 14, 16))
    exact, coarser = (
        np.asarray(one(given, dtype="float32").dataobj) for one in (restore, Restorer(precision="bfloat16"))
    )
    assert 0 < np.sqrt(np.mean(np.square(exact - coarser))) < 0.01 * np.ptp(exact)


def test_a_model_of_ones_own_is_used(tmp_path):
    small_restorer().save(tmp_path / "model.keras")
    restore = Restorer(tmp_path)
    assert restore(image((12, 14, 16)), scale=2).shape == (24, 28, 32)
    with pytest.raises(InputError, match="carries no card"):
        restore(image((12, 14, 16)))


def test_an_image_that_cannot_be_restored_is_refused(restore):
    with pytest.raises(InputError, match="there is nothing to restore"):
        restore(nibabel.Nifti1Image(np.ones((12, 14, 16), np.float32), np.eye(4)))


def test_neither_ray_is_started_nor_a_run_recorded(tmp_path):
    program = (
        "import nibabel, numpy, ray, voxlift\n"
        "voxels = numpy.random.default_rng(0).gamma(2.0, 300.0, (12, 14, 16))\n"
        "print(voxlift.Restorer()(nibabel.Nifti1Image(voxels, numpy.eye(4))).shape, ray.is_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(24, 28, 32) False"
    assert list(tmp_path.iterdir()) == []
