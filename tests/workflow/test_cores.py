"""Restored cores on disk: as small as the output needs them, and the output the same to the bit."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from configs.axes import NetworkShape
from configs.errors import NotFiniteError
from configs.schema import Resources
from tasks.artifacts.network_file import read_network
from tasks.artifacts.shipped import shipped_network
from tasks.imaging.consistency import MAX_PLANE_VALUES
from tasks.sharding.plan import Shard
from tasks.sharding.restore import CoarseVolume, RestoredCore, label_core
from tasks.volume.encoding import Encoding
from tasks.volume.intensity import Intensity
from tasks.volume.nifti import output_encoding
from tests.networks import small_restorer
from tests.tasks.images import affine
from workflow.checks import plans
from workflow.upscale.plan import WRITING_BYTES, UpscaleRequest
from workflow.upscale.volume_work import VolumeWork
from workflow.upscale.volumes import plan_volumes

SHAPE = (20, 18, 45)
RANDOM = np.random.default_rng(0)
GAMMA = RANDOM.gamma(2.0, 300.0, SHAPE)
EDGES = np.where(RANDOM.random(SHAPE) > 0.5, 250.0, 0.0)
CT = np.concatenate([np.full((4, *SHAPE[1:]), -1024.0), GAMMA[4:] - 900])
LABELS = np.indices(SHAPE).sum(axis=0) // 9 % 4
# Voxels, dtype on disk, slope and intercept, bytes of a voxel of a core.
CASES = {
    "int16": (GAMMA, "int16", (1, 0), 2),
    "uint8 that is clipped at both ends": (EDGES, "uint8", (1, 0), 1),
    "slope": (GAMMA, "int16", (0.37, 12.5), 2),
    "level": (GAMMA / 60 + 20000, "uint16", (1, 0), 2),
    "padding": (CT, "int16", (1, 0), 2),
    "series": (np.stack([GAMMA, EDGES], axis=-1), "int16", (1, 0), 2),
    "labels": (LABELS, "uint8", (1, 0), 1),
    "int32": (GAMMA, "int32", (1, 0), 4),
}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return read_network(path)


def planned(network, source, out, **options):
    resources = Resources(workers=1, memory_budget_mib=options.pop("budget", 42))
    request = UpscaleRequest([source], out, network, resources, scale=(2, 2, 2), place="here", **options)
    (work,) = plan_volumes(request)
    assert isinstance(work, VolumeWork)
    return work


def restore(work, most=None):
    """Let a network that adds waves restore the shards of a volume, or some of them."""
    for number, frame in enumerate(work.frames):
        volume: CoarseVolume = frame.coarse
        for shard in frame.to_compute[:most]:
            if volume.labels:
                core = label_core(volume, shard)
            else:
                waves = 0.3 * volume.intensity.high * (1 - 2.0 * (np.indices(shard.shape).sum(axis=0) % 2))
                interpolated = volume.input_window(shard.core)
                core = RestoredCore(interpolated + waves.astype(np.float32), 0.0, 0.0, 0.0).stored(volume, shard)
            work.arrive(number, shard, core)


def written(work):
    """Restore a volume and write it; returns the bytes of its cores on disk."""
    restore(work)
    size = sum(path.stat().st_size for path in work.plan.output.parent.rglob("[!.]*.core"))
    output = work.write()
    work.conclude(output)
    return size


@pytest.mark.parametrize("case", CASES)
def test_cores_are_stored_as_the_output_has_them(network, tmp_path, case):
    voxels, dtype, (slope, inter), size = CASES[case]
    image = nibabel.Nifti1Image(voxels, affine(axes="PIR"), dtype=np.float64)
    image.set_data_dtype(dtype)
    image.header.set_slope_inter(slope, inter)
    image.to_filename(source := tmp_path / "scan.nii")
    kind = "labels" if case == "labels" else "image"
    work, exact = (
        planned(network, source, tmp_path / str(dtype), dtype=dtype, kind=kind) for dtype in (None, "float32")
    )
    shards, count = work.plan.shards, np.prod(work.plan.output_shape)
    assert len(work.plan.shard_plan.shards) > 1
    parts = 0 if kind == "labels" else 4 * np.prod(work.plan.input_shape)
    assert written(work) == size * count + parts + 40 * shards
    assert written(exact) == 4 * count + parts + 40 * shards
    assert work.plan.n_timepoints * work.plan.core_bytes == size * count + parts
    found, expected = (nibabel.load(one.plan.output).dataobj for one in (work, exact))
    encoding = output_encoding(work.plan.scan, None, None)
    np.testing.assert_array_equal(found.get_unscaled(), encoding.encode(expected.get_unscaled()))
    assert work.written.outside == exact.written.outside
    clipped = case == "uint8 that is clipped at both ends"
    assert exact.written.outside > 0.01 or not clipped
    if kind == "image" and not clipped:
        step = encoding.slope / (work.inspected.extent.highest - work.inspected.extent.lowest)
        assert work.written.consistency == pytest.approx(exact.written.consistency, abs=step)


def test_cores_stay_float32_where_more_is_made_of_them(network, tmp_path):
    nibabel.Nifti1Image(GAMMA.astype(np.int16), affine()).to_filename(source := tmp_path / "scan.nii")
    plain, inferred = (planned(network, source, tmp_path / str(one), inferred=one) for one in (False, True))
    sizes = [written(work) for work in (plain, inferred)]
    assert sizes[1] - sizes[0] == 2 * np.prod(plain.plan.target.shape)
    assert plain.plan.output.read_bytes() == inferred.plan.output.read_bytes()
    records = [(work.written.sha256, work.written.consistency, work.written.outside) for work in (plain, inferred)]
    assert records[0] == records[1]
    (needed,) = (need.bytes for need in plans.output_needs([plans._planned(plain.plan)], Path())[1:])
    assert needed == sizes[0] - 40 * plain.plan.shards


def test_stored_cores_are_those_of_the_resumed_output(network, tmp_path):
    nibabel.Nifti1Image(EDGES.astype(np.uint8), affine()).to_filename(source := tmp_path / "scan.nii")
    whole, killed = (planned(network, source, tmp_path / name) for name in ("whole", "out"))
    written(whole)
    restore(killed, most=1)
    resumed = planned(network, source, tmp_path / "out", resume=True)
    written(resumed)
    assert resumed.shards_resumed == 1 < resumed.plan.shards
    assert resumed.written == whole.written
    assert resumed.plan.output.read_bytes() == whole.plan.output.read_bytes()


def damaged_part(path):
    content = bytearray(path.read_bytes())
    content[-44] ^= 1  # in the last number of the part
    path.write_bytes(content)


FAULTS = {
    "deleted": Path.unlink,
    "damaged part": damaged_part,
    "part cut off": lambda path: path.write_bytes(path.read_bytes()[:-60]),
}


@pytest.mark.parametrize("corrects", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_parts_are_summed_to_the_same_bytes_on_resuming(network, tmp_path, fault, corrects):
    nibabel.Nifti1Image(GAMMA.astype(np.int16), affine(axes="PIR")).to_filename(source := tmp_path / "scan.nii")

    def work(name, *, resume=False):
        planned_work = planned(network, source, tmp_path / name, resume=resume)
        plan = replace(planned_work.plan, corrects=corrects)
        return VolumeWork(plan, planned_work.inspected, resume=resume, seconds=0, place="here")

    whole = work("whole")
    written(whole)
    assert (whole.written.noise is not None) == corrects
    restore(work("out"))
    FAULTS[fault](min((tmp_path / "out").rglob("[!.]*.core")))
    resumed = work("out", resume=True)
    written(resumed)
    assert resumed.shards_resumed == resumed.plan.shards - 1 > 0
    assert resumed.written == whole.written
    assert resumed.plan.output.read_bytes() == whole.plan.output.read_bytes()


def test_cores_that_were_compared_are_not_those_that_are_corrected(network, tmp_path):
    nibabel.Nifti1Image(GAMMA, affine()).to_filename(source := tmp_path / "scan.nii")  # float32 cores in both cases
    compared = planned(network, source, tmp_path / "out", dtype="float32")
    restore(compared)
    again = planned(network, source, tmp_path / "out", dtype="float32", resume=True)
    for corrects, kept in ((False, compared.plan.shards), (True, 0)):
        work = VolumeWork(replace(again.plan, corrects=corrects), again.inspected, resume=True, seconds=0, place="here")
        list(work.frames)
        assert work.shards_resumed == kept


def test_a_number_that_no_dtype_holds_fails_before_it_is_rounded():
    voxels, box = np.full((2, 3, 4), 3e38, np.float32), ((0, 2), (0, 3), (0, 4))
    volume = CoarseVolume(voxels, NetworkShape(2, 3, 4), Intensity(0, 1), level=3e38, encoding=Encoding("int16"))
    with pytest.raises(NotFiniteError, match="24 of 24 voxels"), np.errstate(over="ignore"):
        RestoredCore(voxels, 0.0, 0.0, 0.0).stored(volume, Shard(box, box))


def test_padding_by_planes_is_that_of_the_whole_output(network, tmp_path):
    nibabel.Nifti1Image(CT.astype(np.int16), affine(axes="SLP")).to_filename(source := tmp_path / "ct.nii")
    work = planned(network, source, tmp_path / "out")
    coarse = next(work.frames).coarse
    ((value, whole),) = work.plan.padding_in_file(coarse)
    assert (value, whole.shape) == (-1024, work.plan.target.shape)
    np.testing.assert_array_equal(whole, (CT == -1024).repeat(2, 0).repeat(2, 1).repeat(2, 2))
    ((_, planes),) = work.plan.padding_in_file(coarse, 7, 30)
    np.testing.assert_array_equal(planes, whole[:, :, 7:30])


@pytest.mark.parametrize("corrects", [False, True])
def test_a_scan_is_prepared_in_the_memory_that_is_planned(network, tmp_path, corrects):
    scan = np.random.default_rng(0).gamma(2.0, 300.0, (96, 100, 104)).astype(np.int16)
    nibabel.Nifti1Image(scan, affine()).to_filename(source := tmp_path / "scan.nii")
    work = planned(shipped_network() if corrects else network, source, tmp_path / "out", budget=2000)
    assert work.plan.corrects == corrects
    tracemalloc.start()
    try:
        next(work.frames)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    expected = work.plan.driver_bytes - WRITING_BYTES
    assert 0.5 * expected < most < expected + 6 * 8 * MAX_PLANE_VALUES
