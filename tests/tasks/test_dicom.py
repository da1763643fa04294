"""Folders of real DICOM files, converted by dcm2niix."""

import json
import shutil
import sys

import nibabel
import numpy as np
import pytest

from configs.errors import InputError
from tasks.files.selection import expand_inputs
from tasks.volume.dicom import convert_dicom
from tests.tasks.dicom import PATIENT, write_series
from tests.tasks.images import affine

OBLIQUE = affine((0.9, 0.9, 4.0), (10.0, -7.0, 14.0), "LPS")
VOXELS = np.random.default_rng(0).integers(0, 2000, (24, 20, 10)).astype(np.int16)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two series in folders below one."""
    folder = tmp_path_factory.mktemp("study") / "disc"
    write_series(folder / "a", VOXELS, OBLIQUE, number=2)
    write_series(folder / "a" / "b", VOXELS[:, :, :6] + 1, OBLIQUE, number=11)
    return folder


def test_each_series_becomes_a_volume_where_the_scanner_had_it(study, tmp_path):
    done = convert_dicom(study, tmp_path / "out")
    first, second = done.series
    assert done.left_out == 0
    assert [(one.number, one.modality, one.path.name) for one in (first, second)] == [
        (2, "MR", "series-2.nii.gz"),
        (11, "MR", "series-11.nii.gz"),
    ]
    for one, voxels in ((first, VOXELS), (second, VOXELS[:, :, :6] + 1)):
        expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, OBLIQUE))
        found = nibabel.as_closest_canonical(nibabel.load(one.path))
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("series-11.json", "series-11.nii.gz", "series-2.json", "series-2.nii.gz"),
    ]


def test_no_field_about_the_patient_is_kept(study, tmp_path):
    volumes = convert_dicom(study, tmp_path).series
    assert json.loads((tmp_path / "series-2.json").read_text())["SliceThickness"] == 4
    contents = [path.read_bytes() for path in tmp_path.glob("*.json")]
    contents += [nibabel.load(one.path).header.binaryblock for one in volumes]
    for detail in (*PATIENT.split("^"), "4711", "19700102", "20200504", "2020-05-04"):
        assert not [content for content in contents if detail.encode() in content]


def test_conversion_gives_the_same_bytes_again_and_replaces_nothing_else(study, tmp_path):
    (before, _), (after, _) = (convert_dicom(study, tmp_path / name).series for name in "ab")
    assert before.path.read_bytes() == after.path.read_bytes()
    convert_dicom(study, tmp_path / "a")
    after.path.write_bytes(b"another")
    with pytest.raises(InputError, match=r"Cannot write series-2\.nii\.gz: another volume of this name is in b"):
        convert_dicom(study, tmp_path / "b")
    convert_dicom(study, tmp_path / "b", overwrite=True)
    assert before.path.read_bytes() == after.path.read_bytes()


def test_files_that_are_left_out_are_counted(study, tmp_path):
    folder = tmp_path / "study"
    shutil.copytree(study, folder)
    for path in (folder / "a" / "b").iterdir():
        path.write_bytes(path.read_bytes()[:900])
    done = convert_dicom(folder, tmp_path / "out")
    assert ([one.number for one in done.series], done.left_out) == ([2], 6)


def test_series_are_chosen_by_number(study, tmp_path):
    assert [one.number for one in convert_dicom(study, tmp_path, only=[11]).series] == [11]
    with pytest.raises(InputError, match=r"Cannot find series 3 in disc: it holds series 2, 11"):
        convert_dicom(study, tmp_path / "out", only=[2, 3])
    assert not (tmp_path / "out").exists()


def test_without_dcm2niix_the_message_names_the_extra(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dcm2niix", None)
    with pytest.raises(InputError, match=r"Install it with: pip install 'voxlift\[dicom\]'"):
        convert_dicom(study, tmp_path / "out")


def test_files_that_hold_no_image_are_named(tmp_path):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "IM1").write_bytes(bytes(128) + b"DICM" + bytes(64))
    with pytest.raises(InputError, match="Cannot read study: dcm2niix finds no series of images in it"):
        convert_dicom(tmp_path / "study", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_only_volumes_are_read_the_message_says_what_was_given(study):
    with pytest.raises(InputError, match="Cannot find volumes in disc: it holds DICOM files; convert its series"):
        expand_inputs([study])
    with pytest.raises(InputError, match=r"Cannot read IM020000: it is one file of a DICOM series\. Name the folder"):
        expand_inputs([study / "a" / "IM020000"])
