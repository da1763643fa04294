"""Streams of a plan run along the planes of the output file, where it is written while it is computed."""

import numpy as np
import pytest

from configs.axes import FileShape
from configs.schema import Resources
from tasks.artifacts.shipped import shipped_network
from tasks.sharding.plan import Streamed
from tasks.volume.grid import Grid
from tasks.volume.nifti import open_volume, write_volume
from tests.tasks.images import affine
from workflow.upscale.plan import UpscaleRequest, plan_volume


@pytest.mark.parametrize(
    ("axes", "correct", "streamed"),
    [
        ("RSA", False, 1),
        ("RSP", False, 0),  # the planes of the file run against the network's
        ("RSA", True, 0),  # a correction takes all cores before the first plane is written
    ],
)
def test_a_volume_is_streamed_along_the_planes_of_its_file(axes, correct, streamed, tmp_path):
    source = tmp_path / "scan.nii"
    write_volume(source, np.ones((80, 80, 96), np.float32), Grid(FileShape(80, 80, 96), affine((1, 1, 1), axes=axes)))
    resources = Resources(memory_budget_mib=195)
    request = UpscaleRequest([source], None, shipped_network(), resources, (2, 2, 2), correct=correct)
    plan = plan_volume(request, open_volume(source), tmp_path / "out.nii")
    assert plan.corrects == correct
    assert plan.shard_plan.streamed == Streamed(streamed, 16)
