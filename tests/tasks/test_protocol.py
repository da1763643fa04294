import numpy as np
import pytest

from configs.axes import FileShape
from configs.degradation import named_degradation
from configs.errors import InputError
from tasks.scoring.protocol import degraded_reference
from tasks.volume.grid import Grid
from tasks.volume.nifti import read_volume, write_volume


@pytest.fixture
def degraded(tmp_path):
    voxels = np.random.default_rng(0).gamma(2.0, 100.0, (21, 18, 19)).astype(np.float32)
    write_volume(tmp_path / "reference.nii", voxels, Grid(FileShape(*voxels.shape), np.eye(4)))
    return degraded_reference(read_volume(tmp_path / "reference.nii"), named_degradation("iso2x"))


def test_only_what_is_in_the_mask_is_scored(degraded):
    mask = np.zeros(degraded.reference.grid.shape, bool)
    mask[:10] = True
    spoilt = degraded.reference.voxels.copy()
    spoilt[10:] = 0
    scores = degraded.scores(spoilt, mask=mask)
    assert scores.psnr.restored == np.inf
    assert scores.nmse.restored == 0
    assert scores.psnr.cubic != degraded.scores(spoilt).psnr.cubic
    assert np.isfinite(degraded.scores(spoilt).psnr.restored)


def test_an_empty_mask_is_refused(degraded):
    with pytest.raises(InputError, match="no voxel of the part to score is in the mask"):
        degraded.scores(degraded.reference.voxels, mask=np.zeros(degraded.reference.grid.shape, bool))
