"""`voxlift upscale` on what scans come in: DICOM folders, BIDS datasets, files of ITK."""

import json
from io import StringIO

import nibabel
import numpy as np
import pytest
import SimpleITK
from mlflow import MlflowClient
from rich.console import Console

from configs.errors import InputError
from tests.networks import small_restorer
from tests.tasks.dicom import PATIENT, write_series
from tests.tasks.images import affine, save
from tests.workflow.light_restorer import LightRestorer
from workflow.cli import app
from workflow.tracking.verification import verify
from workflow.upscale.sources import find_sources

OBLIQUE = affine((0.9, 0.9, 3.0), (10.0, -7.0, 14.0), "LPS")
VOXELS = np.random.default_rng(0).integers(0, 2000, (12, 10, 8)).astype(np.int16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return path


@pytest.fixture
def upscale(tmp_path, monkeypatch, model, capfd):
    """Upscale 2x: (the JSON object, what went to standard error)."""
    monkeypatch.setattr("workflow.restore.restoration.worker_restorer", LightRestorer)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")

    def run(*arguments):
        options = ["--model", model, "--scale", "2", "--workers", "1", "--json"]
        assert not app(["upscale", *map(str, (*arguments, *options))], standalone_mode=False)
        printed = capfd.readouterr()
        return json.loads(printed.out), printed.err

    return run


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_folder_of_dicom_files_goes_in(upscale, tmp_path):
    study, out = tmp_path / "study", tmp_path / "out"
    write_series(study / PATIENT, VOXELS, OBLIQUE, number=2, description=f"T1 {PATIENT}")
    write_series(study / PATIENT, VOXELS + 1, OBLIQUE, number=3)
    report, printed = upscale(study, "--out", out, "--series", 2)
    (volume,) = report["volumes"]
    assert volume["output"] == str(out / "series-2_sr.nii.gz")
    series, becomes = (printed.find(words) for words in ("series 2: MR, 12x10x8 voxels at 0.9x0.9x3 mm", "becomes"))
    assert 0 <= series < becomes
    source, restored = nibabel.load(out / "converted" / "series-2.nii.gz"), nibabel.load(out / "series-2_sr.nii.gz")
    expected = source.affine @ np.diag([0.5, 0.5, 0.5, 1.0])
    np.testing.assert_allclose(restored.affine[:3, :3], expected[:3, :3], atol=1e-5)
    np.testing.assert_allclose(restored.affine[:3, 3], (source.affine @ [-0.25, -0.25, -0.25, 1])[:3], atol=1e-5)
    client = MlflowClient()
    run = client.get_run(report["mlflow"]["run_id"])
    recorded = json.dumps([run.data.params, run.data.tags, [str(one) for one in run.inputs.dataset_inputs]])
    recorded += (out / "series-2_sr.json").read_text() + printed + json.dumps(report["volumes"])
    assert not [part for part in (*PATIENT.split("^"), "4711", "19700102") if part in recorded]
    again, _ = upscale(study, "--out", out, "--resume")
    assert [one["status"] for one in again["volumes"]] == ["resumed", "done"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_bids_dataset_goes_in_and_its_tree_comes_out(upscale, tmp_path):
    root = tmp_path / "study"
    out = root / "derivatives" / "voxlift"
    for name in ("sub-01/ses-1/anat/sub-01_ses-1_T1w", "sub-02/anat/sub-02_T1w", "sub-03/anat/sub-03_T1w"):
        (root / name).parent.mkdir(parents=True)
        save(root / f"{name}.nii.gz", VOXELS.astype(float), OBLIQUE, dtype="i2")
    (root / "dataset_description.json").write_text('{"Name": "study", "BIDSVersion": "1.8.0"}')
    command = [root, "--out", out, "--participant-label", "01", "02"]
    report, _ = upscale(*command)
    names = ["sub-01/ses-1/anat/sub-01_ses-1_desc-sr_T1w", "sub-02/anat/sub-02_desc-sr_T1w"]
    assert [one["output"] for one in report["volumes"]] == [str(out / f"{name}.nii.gz") for name in names]
    sidecar = json.loads((out / f"{names[0]}.json").read_text())
    assert sidecar["Sources"] == ["bids:raw:sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz"]
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert verify(str((out / names[0]).parent)).damages == ()
    # Outputs are no inputs of the next call.
    report, _ = upscale(root, "--out", out, "--resume")
    assert [one["status"] for one in report["volumes"]] == ["resumed", "resumed", "done"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_an_nrrd_file_gives_nifti_over_the_same_field_of_view(upscale, tmp_path):
    save(tmp_path / "scan.nii", VOXELS.astype(float), OBLIQUE, dtype="i2")
    SimpleITK.WriteImage(SimpleITK.ReadImage(str(tmp_path / "scan.nii")), str(tmp_path / "copy.nrrd"))
    report, _ = upscale(tmp_path / "scan.nii", tmp_path / "copy.nrrd", "--out", tmp_path / "out")
    ours, theirs = (nibabel.load(one["output"]) for one in report["volumes"])
    assert theirs.get_filename().endswith("copy_sr.nii.gz")
    assert theirs.get_data_dtype() == np.int16
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))


def test_series_are_listed_and_participants_follow_as_in_bids_apps(tmp_path):
    printed = StringIO()
    heard = Console(file=printed, width=200)
    write_series(tmp_path / "study", VOXELS, OBLIQUE, number=2, description=PATIENT)
    found = find_sources([str(tmp_path / "study")], tmp_path / "out", heard)
    assert found.paths == [tmp_path / "out" / "converted" / "series-2.nii.gz"]
    assert printed.getvalue().splitlines() == [
        "Converting DICOM files …",
        "series 2: MR, 12x10x8 voxels at 0.9x0.9x3 mm, as converted/series-2.nii.gz",
    ]
    root = tmp_path / "bids"
    for label in ("01", "02", "03"):
        (root / f"sub-{label}" / "anat").mkdir(parents=True)
        (root / f"sub-{label}" / "anat" / f"sub-{label}_T1w.nii").touch()
    (root / "dataset_description.json").write_text("{}")
    found = find_sources([str(root), "02"], root / "derivatives" / "x", heard, participants=["sub-01"])
    assert [path.name for path in found.paths] == ["sub-01_T1w.nii", "sub-02_T1w.nii"]
    assert found.dataset == root


def test_what_cannot_be_taken_together_is_refused(upscale, tmp_path):
    write_series(tmp_path / "study", VOXELS[:, :, :2], OBLIQUE)
    scan = save(tmp_path / "scan.nii", VOXELS.astype(float), OBLIQUE)
    (tmp_path / "bids" / "sub-01").mkdir(parents=True)
    (tmp_path / "bids" / "dataset_description.json").write_text("{}")
    out = ("--out", tmp_path / "out")
    for arguments, part in {
        (tmp_path / "study",): "Cannot write the outputs of study next to its files. Give --out with a folder",
        (tmp_path / "bids",): f"Give --out {tmp_path}/bids/derivatives/voxlift.",
        (tmp_path / "study", scan, *out): "Cannot use study together with other volumes. Give it alone.",
        (scan, *out, "--participant-label", "01"): "Cannot choose participants: no BIDS dataset is given.",
        (scan, *out, "--series", "1"): "Cannot choose series: no folder of DICOM files is given.",
        (tmp_path / "bids", "--out", tmp_path / "bids"): "Cannot write into bids: its dataset_description.json",
    }.items():
        with pytest.raises(InputError) as refused:
            upscale(*arguments)
        assert part in str(refused.value)
    assert not (tmp_path / "out").exists()
