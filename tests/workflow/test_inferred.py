"""The inferred detail: the output less what its scan determines, as a file, as a share, and on resuming."""

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from configs.errors import InputError
from configs.schema import Resources
from tasks.artifacts.network_file import read_network
from tasks.artifacts.shipped import shipped_network
from tasks.imaging.consistency import consistent_interpolation, noise_level
from tasks.imaging.degrade import degrade
from tasks.imaging.resample import resample
from tasks.sharding.detail import Detail, split_detail
from tasks.sharding.plan import plan_shards
from tasks.sharding.restore import RestoredCore
from tasks.volume.intensity import find_intensity, normalise
from tests.networks import small_restorer
from tests.tasks.images import affine, save
from tests.tasks.test_labels import regions
from tests.tasks.test_padding import scanned
from workflow.upscale.plan import UpscaleRequest
from workflow.upscale.volume_work import VolumeWork
from workflow.upscale.volumes import plan_volumes, require_new

REAL = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"


@pytest.fixture
def planned(tmp_path):
    """Plan the work on a file: 2x, with the inferred detail, for the shipped network, which no test here loads."""

    def plan(source=REAL, out="out", **options):
        options = {"inferred": True, "dtype": "float32", "place": "here", **options}
        network = options.pop("network", None) or shipped_network()
        resources = Resources(workers=1, memory_budget_mib=options.pop("budget", 2000))
        request = UpscaleRequest([source], tmp_path / out, network, resources, scale=(2, 2, 2), **options)
        (work,) = plan_volumes(request)
        assert isinstance(work, VolumeWork)
        return work

    return plan


@pytest.fixture(scope="module")
def small_network(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return read_network(path)


def written(work, added=0.0):
    """Let a network that adds known detail to its input restore a volume; returns the record of the output."""
    for number, frame in enumerate(work.frames):
        coarse, shape = frame.coarse, frame.coarse.target_shape
        restored = coarse.input_window(tuple((0, size) for size in shape)) + np.broadcast_to(np.float32(added), shape)
        for shard in frame.to_compute:
            core = restored[tuple(slice(*side) for side in shard.core)]
            work.arrive(number, shard, RestoredCore(core, 0.0, 0.0, 0.0).stored(coarse, shard))
    output = work.write()
    work.conclude(output)
    return output.written


def voxels_of(path):
    return np.asarray(nibabel.load(path).dataobj, np.float32)


def waves(work, amplitude):
    """Alternating along every axis, so that a mean over blocks does not see it."""
    signs = np.indices(work.plan.shard_plan.target_shape).sum(axis=0) % 2
    return amplitude * (1 - 2.0 * signs)


def energy(voxels):
    return float(np.sum(np.square(voxels, dtype=float)))


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("options", [{}, {"profile": "box"}, {"correct": False}], ids=["assumed", "given", "as it is"])
def test_the_file_is_the_output_less_the_consistent_interpolation(planned, tmp_path, options, clipped):
    image = nibabel.load(REAL)
    if clipped:  # nor is any voxel of the output below 0 then
        image = nibabel.Nifti1Image(np.maximum(image.dataobj, 0), image.affine)
    image.to_filename(tmp_path / "anatomical.nii")
    work = planned(tmp_path / "anatomical.nii", **options)
    record = written(work, waves(work, 4.0))

    plan = work.plan
    output, found = nibabel.load(plan.output), nibabel.load(plan.inferred_output)
    assert plan.inferred_output.name == "anatomical_sr_inferred.nii"
    assert (found.shape, found.get_data_dtype()) == (output.shape, np.float32)
    np.testing.assert_array_equal(found.affine, output.affine)

    coarse = np.ascontiguousarray(plan.axes.to_network(np.asarray(image.dataobj, np.float32)))
    shape, intensity, recipe = plan.shard_plan.target_shape, find_intensity(coarse), plan.recipe
    assert recipe is not None
    seen, span = normalise(coarse, intensity), intensity.high - intensity.low
    consistent = consistent_interpolation(seen, shape, recipe, noise_level(seen, shape, recipe))
    consistent = consistent * np.float32(span) + np.float32(intensity.low)
    low = 0 if clipped else -np.inf
    cubic, consistent = (plan.axes.to_file(np.maximum(one, low)) for one in (resample(coarse, shape), consistent))
    inferred, measured = voxels_of(plan.output) - consistent, consistent - cubic
    np.testing.assert_allclose(found.dataobj, inferred, atol=1e-4 * span)
    assert energy(inferred) > 0.1 * energy(waves(work, 4.0))
    assert record.inferred_share == pytest.approx(energy(inferred) / (energy(inferred) + energy(measured)), rel=1e-3)


def test_the_shards_make_no_difference(planned, small_network, tmp_path):
    voxels = np.random.default_rng(0).gamma(2.0, 300.0, size=(48, 41, 52))
    path = save(tmp_path / "scan.nii.gz", voxels, affine(axes="LPI"), dtype="i2")
    one, other = planned(path, out="one"), planned(path, out="several")
    shards = plan_shards(one.plan.shard_plan.target_shape, small_network.cost, 50, name="scan")  # of smaller halos
    several = VolumeWork(replace(other.plan, shard_plan=shards), other.inspected, resume=False, seconds=0, place="here")
    assert len(several.plan.shard_plan.shards) > len(one.plan.shard_plan.shards) == 1
    records = [written(work, waves(work, 4.0)) for work in (one, several)]
    assert records[0].inferred_share == records[1].inferred_share
    assert one.plan.inferred_output.read_bytes() == several.plan.inferred_output.read_bytes()


@pytest.mark.parametrize("axes", ["RAS", "LPI", "PSL", "SAR"])
def test_planes_are_split_as_the_whole_volume_is(planned, tmp_path, axes):
    voxels = 100 * np.random.default_rng(0).normal(size=(12, 13, 14))
    work = planned(save(tmp_path / "scan.nii", voxels, affine(axes=axes), dtype="f4"))
    coarse, axes = work.plan.measured(next(work.frames).coarse), work.plan.axes
    assert coarse.correction is not None
    restored = np.random.default_rng(1).normal(size=work.plan.target.shape).astype(np.float32)
    whole, detail = split_detail(coarse, axes, restored, 0, [])
    parts = [split_detail(coarse, axes, restored[..., start : start + 5], start, []) for start in range(0, 28, 5)]
    np.testing.assert_allclose(np.concatenate([part for part, _ in parts], axis=2), whole, atol=1e-3)
    assert sum((found for _, found in parts), Detail()).inferred_share == pytest.approx(detail.inferred_share)


def signed(tmp_path):
    """A volume of which no voxel is clipped, of two time points in an order of its own."""
    voxels = 100 * np.random.default_rng(0).normal(size=(20, 22, 18, 2))
    return save(tmp_path / "signed.nii.gz", voxels, affine(axes="PSL"), dtype="f4")


def test_the_share_is_that_of_the_known_detail(planned, tmp_path):
    """Without the correction of the output, the inferred detail is what the network has added, to the voxel."""
    share = {}
    for amplitude in (0.0, 10.0):
        work = planned(signed(tmp_path), out=str(amplitude), profile="box", correct=False)
        share[amplitude] = written(work, waves(work, amplitude)).inferred_share
        for number in range(2):
            found = voxels_of(work.plan.inferred_output)[..., number]
            np.testing.assert_allclose(work.plan.axes.to_network(found), waves(work, amplitude), atol=1e-3)
    assert share[0.0] == pytest.approx(0, abs=1e-9)
    assert 0.01 < share[10.0] < 0.99


def test_a_scan_neither_confirms_nor_contradicts_the_inferred_detail(planned, tmp_path):
    """Nor does it overlap with the measured detail: their energies are those of all detail."""
    field = np.random.default_rng(0).normal(size=(6, 6, 6))
    smooth = resample(field.astype(np.float32), (24, 24, 24)) * 100
    work = planned(save(tmp_path / "smooth.nii", smooth, affine((1, 1, 1)), dtype="f4"), profile="box")
    detail = np.random.default_rng(1).normal(0, 5, work.plan.shard_plan.target_shape)
    record, plan = written(work, detail), work.plan
    inferred, output = (plan.axes.to_network(voxels_of(path)) for path in (plan.inferred_output, plan.output))
    seen = degrade(np.ascontiguousarray(inferred), plan.recipe)
    assert energy(inferred) > 0.5 * energy(detail)
    assert np.sqrt(np.mean(seen**2)) < 0.05 * np.sqrt(np.mean(inferred**2))
    everything = energy(output - resample(np.ascontiguousarray(plan.axes.to_network(smooth)), output.shape))
    assert record.inferred_share == pytest.approx(energy(inferred) / everything, abs=0.03)


def test_without_an_acquisition_all_detail_is_inferred(planned, small_network):
    assert small_network.card is None
    for amplitude, share in ((0.0, 0.0), (4.0, 1.0)):
        work = planned(network=small_network, out=str(amplitude))
        assert written(work, waves(work, amplitude)).inferred_share == share


@pytest.mark.parametrize("value", [-1024, np.nan])
def test_padding_has_no_detail(planned, tmp_path, value):
    voxels = scanned(value)
    work = planned(save(tmp_path / "ct.nii", voxels, affine(), dtype="f4"))
    record = written(work, waves(work, 4.0))
    inferred = voxels_of(work.plan.inferred_output)
    padding = (np.isnan(voxels) if np.isnan(value) else voxels == value).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert not inferred[padding].any()
    assert np.abs(inferred[~padding]).mean() > 1
    assert 0 < record.inferred_share < 1


def test_a_label_map_has_none(planned, tmp_path):
    work = planned(save(tmp_path / "labels.nii", regions().astype(float), affine(), dtype="i2"), dtype=None)
    assert not work.plan.writes_inferred


def test_a_resumed_run_has_the_files_that_it_asks_for(planned):
    asks, path = {"resume": True}, planned().plan.inferred_output
    work = planned(inferred=False)
    plain = written(work)
    assert plain.inferred_share is None
    assert planned(**asks, inferred=False).written == plain
    assert planned(**asks).written is None  # the inferred detail is still to be written
    record, before = written(planned(**asks)), path.read_bytes()
    assert planned(**asks).written == planned(**asks, inferred=False).written == record
    assert path.read_bytes() == before

    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert planned(**asks).written is None
    assert written(planned(**asks)) == record
    assert path.read_bytes() == before

    written(planned(inferred=False))
    assert not path.exists()  # it would belong to another output


def test_a_run_that_fails_leaves_no_part_of_the_file(planned, tmp_path, monkeypatch):
    whole = written(planned(out="whole"))
    work = planned()

    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(work.plan.inferred_output.__class__, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            written(work)
    assert [path for path in (tmp_path / "out").iterdir() if path.is_file()] == []
    assert written(planned(resume=True)) == whole
    assert work.plan.inferred_output.read_bytes() == (tmp_path / "whole" / work.plan.inferred_output.name).read_bytes()


def test_the_file_is_refused_in_advance_where_it_cannot_be_written(planned, tmp_path):
    plan = planned().plan
    plan.inferred_output.parent.mkdir()
    plan.inferred_output.touch()
    request = UpscaleRequest([REAL], tmp_path / "out", shipped_network(), Resources(), inferred=True)
    with pytest.raises(InputError, match=r"Cannot write anatomical_sr_inferred\.nii: an earlier run"):
        require_new(request.files)
    long = save(tmp_path / f"{'n' * 220}.nii", voxels_of(REAL), affine(), dtype="f4")
    planned(long, inferred=False)
    with pytest.raises(InputError, match="a name may have 230 bytes, this one has 236"):
        planned(long)
