"""Volumes: whole or not at all, equal bytes, and one subject in fifteen storages."""

import bz2
import gzip
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.testing import data_path
from scipy import ndimage

from configs.axes import FileShape
from configs.errors import InputError
from tasks.imaging.resample import resample
from tasks.training.template import template_path
from tasks.volume.grid import Grid, covering_grid, network_axes, scaled_grid, slice_axis
from tasks.volume.inspection import inspect_volume
from tasks.volume.nifti import open_volume, read_volume, write_slabs, write_volume
from tests.tasks.images import affine, data_folder, fifteen_storages, ramp, save


def phantom(shape=(12, 13, 14)):
    return np.random.default_rng(0).random(shape, dtype=np.float32)


def test_a_file_that_is_not_finished_is_not_there(tmp_path):
    def slabs():
        yield phantom((4, 4, 2))
        raise RuntimeError("the network failed")

    with pytest.raises(RuntimeError, match="the network failed"):
        write_slabs(tmp_path / "a.nii.gz", slabs(), Grid(FileShape(4, 4, 4), np.eye(4)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("slab", [(4, 4, 3), (4, 4, 5), (4, 3, 4)])
def test_slabs_that_do_not_fill_the_grid_are_not_a_volume(slab, tmp_path):
    with pytest.raises(ValueError, match="grid of"):
        write_slabs(tmp_path / "a.nii", [phantom(slab)], Grid(FileShape(4, 4, 4), np.eye(4)))
    assert not list(tmp_path.iterdir())


def test_only_nifti_is_written(tmp_path):
    with pytest.raises(InputError, match="written as NIfTI"):
        write_volume(tmp_path / "a.mgz", phantom(), Grid(FileShape(12, 13, 14), np.eye(4)))


def test_equal_voxels_give_equal_files(tmp_path):
    voxels = phantom((80, 90, 70))  # more than one block of the compressor
    grid = Grid(voxels.shape, affine())
    write_volume(tmp_path / "a.nii.gz", voxels, grid)
    write_slabs(tmp_path / "b.nii.gz", np.array_split(voxels, 5, axis=2), grid)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    raw = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    assert len(raw) == 352 + 4 * voxels.size


def test_a_volume_of_no_file_opens_where_it_was_placed(tmp_path):
    grid = Grid(FileShape(12, 13, 14), affine(angles=(10, 20, 30)))
    write_volume(tmp_path / "a.nii.gz", phantom(), grid)
    image = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), phantom())
    for form in (image.get_sform(), image.get_qform()):
        np.testing.assert_allclose(form, grid.affine, atol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms(), grid.spacing, rtol=1e-6)
    assert image.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nii.bz2"])
def test_slabs_are_parts_of_the_whole(name, tmp_path):
    voxels = phantom((9, 8, 30))
    save(tmp_path / name, voxels, affine())
    scan = open_volume(tmp_path / name)
    np.testing.assert_array_equal(scan.slab(7, 19), voxels[:, :, 7:19])
    np.testing.assert_array_equal(scan.slab(2, 3), voxels[:, :, 2:3])
    np.testing.assert_array_equal(scan.read().voxels, voxels)


def test_threads_that_read_at_once_leave_the_warnings_of_the_process_alone(tmp_path):
    save(tmp_path / "odd.nii", phantom(), affine(), pixdim=[1, -1, 1.5, 3, 0, 0, 0, 0])
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        reported = list(pool.map(lambda _: open_volume(tmp_path / "odd.nii").header.warnings, range(200)))
    assert list(warnings.filters) == before
    assert len(set(reported)) == 1
    assert len(reported[0]) == 1
    assert "pixdim" in reported[0][0]


def test_voxels_that_are_no_numbers_are_read_as_air(tmp_path):
    voxels = ramp(affine(), (9, 8, 7))
    voxels[3, 4, 5], voxels[0, 0, 0] = np.nan, np.inf
    save(tmp_path / "a.nii", voxels, affine())
    found = read_volume(tmp_path / "a.nii").voxels
    assert found[3, 4, 5] == found[0, 0, 0] == voxels[np.isfinite(voxels)].min().astype(np.float32)


def test_the_template_is_found_without_importing_nilearn():
    volume = read_volume(template_path())
    assert volume.grid.shape == (197, 233, 189)
    assert volume.grid.spacing == (1, 1, 1)


def test_the_templates_round_trip_through_half_the_resolution(tmp_path):
    """As in the demo: degraded and restored, the geometry is the template's again."""
    template = read_volume(template_path())
    half = scaled_grid(template.grid, (0.5, 0.5, 0.5))
    write_volume(tmp_path / "coarse.nii.gz", np.zeros(half.shape, np.float32), half, template)
    coarse = read_volume(tmp_path / "coarse.nii.gz")
    back = covering_grid(coarse.grid, template.grid.shape)
    write_volume(tmp_path / "fine.nii.gz", np.zeros(back.shape, np.float32), back, coarse)
    image, original = nibabel.load(tmp_path / "fine.nii.gz"), nibabel.load(template_path())
    assert image.shape == original.shape
    np.testing.assert_allclose(image.affine, original.affine, atol=1e-5)
    np.testing.assert_allclose(image.header.get_zooms(), original.header.get_zooms(), atol=1e-6)


def test_one_head_in_fifteen_storages_gives_one_restored_image(tmp_path):
    """With a lopsided filter in the place of the network, so that a wrong axis or direction shows."""
    kernel = np.random.default_rng(1).random((3, 3, 3))
    seen = []
    for path in fifteen_storages(tmp_path):
        volume = read_volume(path)
        axes = network_axes(volume.grid)
        grid = scaled_grid(volume.grid, axes.of_network((2, 1, 1)))
        fine = resample(axes.to_network(volume.voxels), axes.of_file(grid.shape))
        restored = axes.to_file(ndimage.convolve(fine, kernel / kernel.sum(), mode="nearest"))
        write_volume(tmp_path / f"{path.name}_sr.nii.gz", restored, grid, volume, dtype="float32")
        seen.append(nibabel.as_closest_canonical(nibabel.load(tmp_path / f"{path.name}_sr.nii.gz")))
    assert len(seen) == 15
    for image in seen[1:]:
        np.testing.assert_allclose(image.affine, seen[0].affine, atol=1e-3)
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(seen[0].dataobj))


def test_the_slice_axis_of_a_thick_scan_is_the_thick_one(tmp_path):
    folder = data_folder()
    source = (
        folder / "chris_PD.nii.gz" if folder else save(tmp_path / "thick.nii.gz", phantom(), affine((0.9, 0.9, 2.4)))
    )
    assert slice_axis(open_volume(source).grid) == 2


@pytest.mark.parametrize(
    ("name", "step", "unit"),
    [
        ("test.mgz", 2, "msec"),
        ("minc1_4d.mnc", 2, "sec"),
        ("minc2_4d.mnc", 2, "sec"),
        ("example4d+orig.HEAD", 3, "sec"),
        ("phantom_EPI_asc_CLEAR_2_1.PAR", 2, "sec"),
        ("example4d.nii.gz", 2000, "sec"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # nibabel's, of .REC files
def test_the_time_step_is_told_with_its_unit_by_every_format(name, step, unit):
    header = open_volume(Path(str(data_path)) / name).header
    assert (header.time_step, header.units[1]) == (step, unit)


@pytest.mark.parametrize(("name", "pack"), [("a.nii", bytes), ("a.nii.gz", gzip.compress), ("a.nii.bz2", bz2.compress)])
@pytest.mark.parametrize(
    ("kind", "field", "start"), [(nibabel.Nifti1Image, (108, "<f"), 352), (nibabel.Nifti2Image, (168, "<q"), 544)]
)
def test_a_data_offset_of_zero_means_after_the_header(name, pack, kind, field, start, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 900, (9, 8, 7)).astype("i2")
    raw = bytearray(save(tmp_path / "whole.nii", voxels, affine(), kind=kind, dtype="i2").read_bytes())
    assert struct.unpack_from(field[1], raw, field[0])[0] == start
    struct.pack_into(field[1], raw, field[0], 0)
    (tmp_path / name).write_bytes(pack(bytes(raw)))
    found = inspect_volume(tmp_path / name)
    np.testing.assert_array_equal(next(found.volumes()).voxels, voxels)
    np.testing.assert_array_equal(open_volume(tmp_path / name).slab(2, 5), voxels[:, :, 2:5])
    assert (found.extent.lowest, found.extent.highest) == (voxels.min(), voxels.max())
    assert any(f"its data offset is 0; the voxels are read from byte {start} on" in one for one in found.warnings)
    (tmp_path / "cut.nii").write_bytes(raw[:-2])
    with pytest.raises(InputError, match=r"its header declares \d+ bytes"):
        inspect_volume(tmp_path / "cut.nii")


@pytest.mark.parametrize(
    ("behind", "warned"),
    [(b"junk" * 5, "20 bytes follow the compressed stream"), (b"j", "1 bytes follow"), (bytes(512), ""), (b"", "")],
)
def test_bytes_after_a_gzip_stream_are_left_out_with_a_warning(tmp_path, behind, warned):
    path = save(tmp_path / "scan.nii.gz", ramp(affine(), (60, 50, 40)), affine())
    halves = (raw := gzip.decompress(path.read_bytes()))[:9000], raw[9000:]
    path.write_bytes(b"".join(gzip.compress(half) for half in halves) + behind)  # of two members
    found = inspect_volume(path)
    assert found.warnings == () if not warned else found.warnings[0].startswith(warned)
    np.testing.assert_array_equal(next(found.volumes()).voxels, np.asarray(nibabel.load(path).dataobj))
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(500))[:-9])
    if not behind:
        with pytest.raises(InputError, match="the compressed file is truncated"):
            inspect_volume(path)


@pytest.mark.parametrize("excess", [4.8e-7, 5e-6])
def test_a_quaternion_that_rounding_made_too_long_is_a_rotation(tmp_path, excess):
    half_turn = affine((1.0, 1.5, 3.0), axes="LPS")  # whose quaternion has no real part
    path = save(tmp_path / "scan.nii", ramp(half_turn, (9, 8, 7)), half_turn, codes=(1, 0))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<f", raw, 264, np.sqrt(1 + excess))  # quatern_d
    path.write_bytes(raw)
    found = inspect_volume(path)
    np.testing.assert_allclose(found.scan.grid.affine, half_turn, atol=1e-6)
    assert any("longer than 1" in warning for warning in found.warnings)
    struct.pack_into("<f", raw, 264, np.sqrt(1 + 1e-3))
    path.write_bytes(raw)
    with pytest.raises(InputError, match="w2 should be positive"):
        inspect_volume(path)
