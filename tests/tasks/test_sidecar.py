"""The JSON next to a volume: what the scanner recorded of an input, and where an output came from."""

import json

import pytest

from configs.errors import ReadError
from tasks.imaging.acquisition import ScannerRecord
from tasks.volume.sidecar import MAX_SIDECAR, Sidecar, read_scanner_record, write_sidecar


def test_it_says_where_the_volume_came_from(tmp_path):
    sidecar = Sidecar(
        sources=("sub-01_T1w.nii.gz",),
        resolution="2x2x2 voxels per voxel of the source",
        model_digest="ab12",
        mlflow_run="run1",
        scale=(2, 2, 2),
        input_shape=(10, 11, 12),
        output_shape=(20, 22, 24),
        input_spacing=(1, 1, 1),
        output_spacing=(0.5, 0.5, 0.5),
        consistency=0.001,
    )
    write_sidecar(tmp_path / "a.json", sidecar)
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["Sources"] == ["sub-01_T1w.nii.gz"]
    assert found["GeneratedBy"][0]["Name"] == "voxlift"
    assert found["GeneratedBy"][0]["Version"]
    assert (found["ModelDigest"], found["MLflowRun"]) == ("ab12", "run1")
    assert (found["Scale"], found["OutputShape"]) == ([2, 2, 2], [20, 22, 24])
    assert "Intensity" not in found
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ({}, ScannerRecord()),
        ({"SliceThickness": 3, "Modality": "MR"}, ScannerRecord(3.0)),
        ({"MRAcquisitionType": "3D", "SliceThickness": 1.5}, ScannerRecord(1.5, True)),
        ({"MRAcquisitionType": "2D", "PatientName": "left out"}, ScannerRecord(None, False)),
    ],
)
def test_what_the_scanner_recorded_is_read(tmp_path, written, found):
    (tmp_path / "scan.json").write_text(json.dumps(written))
    assert read_scanner_record(tmp_path / "scan.nii.gz") == found


def test_a_volume_needs_no_sidecar(tmp_path):
    assert read_scanner_record(tmp_path / "scan.nii.gz") == ScannerRecord()


@pytest.mark.parametrize(
    "written",
    ["", "[]", "null", '{"SliceThickness": -1}', '{"SliceThickness": "thin"}', "[" * 5000, " " * MAX_SIDECAR + " "],
)
def test_a_sidecar_that_is_none_is_refused_by_its_name(tmp_path, written):
    (tmp_path / "scan.json").write_text(written)
    with pytest.raises(ReadError, match=r"Cannot read the sidecar scan\.json: .{1,300}\. Correct it, or remove it\."):
        read_scanner_record(tmp_path / "scan.nii.gz")
