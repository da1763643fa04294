"""NRRD and MetaImage files, compared with SimpleITK."""

import sys

import nibabel
import numpy as np
import pytest
import SimpleITK

from configs.errors import InputError, ReadError
from tasks.volume.inspection import inspect_volume
from tasks.volume.nifti import open_volume, read_volume, write_volume
from tests.tasks.images import affine

MATRIX = affine((0.9, 1.0, 3.0), (11.0, -7.0, 15.0), "LPS")
VOXELS = np.random.default_rng(0).integers(-900, 2000, (9, 8, 7)).astype(np.int16)
NAMES = ("scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd")


def itk_image(voxels, matrix):
    """As ITK has it: in LPS, its array in reverse order."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def written(path, image, *, compressed=False):
    SimpleITK.WriteImage(image, str(path), useCompression=compressed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_an_oblique_scan_lies_where_simpleitk_says(tmp_path, name, compressed):
    image = itk_image(VOXELS, MATRIX)
    found = inspect_volume(written(tmp_path / name, image, compressed=compressed))
    scan = found.scan
    assert scan.header.dtype == np.int16
    assert found.warnings == ()
    np.testing.assert_array_equal(scan.read().voxels, VOXELS)
    np.testing.assert_array_equal(next(found.volumes()).voxels, VOXELS)
    for index in np.ndindex(2, 2, 2):
        corner = [place * (size - 1) for place, size in zip(index, VOXELS.shape, strict=True)]
        x, y, z = image.TransformIndexToPhysicalPoint(corner)
        np.testing.assert_allclose(scan.grid.world(np.array(corner, float)), [-x, -y, z], atol=1e-5)
    assert len(found.digests) == (2 if name.endswith(("hd", "hdr")) else 1)


def test_what_is_written_of_one_is_nifti_in_the_same_place(tmp_path):
    scan = open_volume(written(tmp_path / "scan.mha", itk_image(VOXELS, MATRIX)))
    write_volume(tmp_path / "copy.nii.gz", scan.read().voxels, scan.grid, scan)
    ours, theirs = nibabel.load(tmp_path / "copy.nii.gz"), tmp_path / "theirs.nii"
    SimpleITK.WriteImage(itk_image(VOXELS, MATRIX), str(theirs))
    np.testing.assert_allclose(ours.affine, nibabel.load(theirs).affine, atol=1e-5)
    assert ours.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(ours.dataobj), VOXELS)


@pytest.mark.parametrize("name", ["series.nrrd", "series.mha"])
def test_time_points_are_read_one_by_one(tmp_path, name):
    images = [itk_image(VOXELS + number, MATRIX) for number in range(3)]
    path = written(tmp_path / name, SimpleITK.JoinSeries(images, 0.0, 2.5))
    scan = open_volume(path)
    assert (scan.header.n_timepoints, scan.header.time_step) == (3, 2.5)
    for number in (0, 2, 1):
        np.testing.assert_array_equal(scan.read(number).voxels, VOXELS + number)
    np.testing.assert_array_equal(read_volume(tmp_path / f"{name}[1]").voxels, VOXELS + 1)
    with pytest.raises(ReadError, match="a single volume is needed here"):
        read_volume(path)
    with pytest.raises(ReadError, match="and no number 3"):
        open_volume(tmp_path / f"{name}[3]")


def test_vectors_are_refused(tmp_path):
    image = itk_image(VOXELS, MATRIX)
    path = written(tmp_path / "vectors.nrrd", SimpleITK.Compose(image, image, image))
    with pytest.raises(ReadError, match="its voxels are vector of 16-bit signed integer; one real number"):
        open_volume(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_cut_are_refused(tmp_path, name, compressed):
    path = written(tmp_path / name, itk_image(VOXELS, MATRIX), compressed=compressed)
    data = open_volume(path).data_path
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(
        InputError, match=r"Cannot read scan\.\S+: (its header declares|it is damaged|the compressed file is truncated)"
    ):
        inspect_volume(path)


def test_voxels_that_are_elsewhere_are_named(tmp_path):
    path = written(tmp_path / "scan.mhd", itk_image(VOXELS, MATRIX))
    (tmp_path / "scan.raw").rename(tmp_path / "other.raw")
    with pytest.raises(ReadError, match=r"its voxels should be in scan\.raw"):
        open_volume(path)
    path.write_text(path.read_text().replace("scan.raw", "LIST"))
    with pytest.raises(ReadError, match="its voxels are in several files"):
        open_volume(path)


def test_a_file_without_a_space_is_read_with_a_warning(tmp_path):
    path = written(tmp_path / "scan.nhdr", itk_image(VOXELS, MATRIX))
    lines = [line for line in path.read_text().splitlines() if not line.startswith("space")]
    path.write_text("\n".join([*lines, "spacings: 1 1 2", "", ""]))
    assert "names no space" in inspect_volume(path).warnings[0]


def test_without_simpleitk_the_message_names_the_extra(tmp_path, monkeypatch):
    path = written(tmp_path / "scan.nrrd", itk_image(VOXELS, MATRIX))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(ReadError, match=r"Install it with: pip install 'voxlift\[itk\]'"):
        open_volume(path)


def test_a_text_under_such_a_name_is_refused(tmp_path):
    (tmp_path / "scan.mha").write_text("hello")
    with pytest.raises(ReadError, match="it is damaged, incomplete, or in another format than its name says"):
        open_volume(tmp_path / "scan.mha")
