"""BIDS datasets: their images, and the dataset that is made of them."""

import json
import re

import pytest
from bidsschematools.rules import regexify_filename_rules
from bidsschematools.schema import load_schema

from configs.errors import InputError
from tasks.files.bids import anatomical_images, describe_derivatives, is_dataset, require_own
from tasks.files.outputs import inferred_name, output_paths
from tasks.files.selection import expand_inputs

IMAGES = (
    "sub-01/ses-1/anat/sub-01_ses-1_acq-lo_run-1_T1w.nii.gz",
    "sub-01/ses-2/anat/sub-01_ses-2_part-mag_T2starw.nii",
    "sub-02/anat/sub-02_FLAIR.nii.gz",
)
OTHERS = (
    "sub-01/ses-2/anat/sub-01_ses-2_part-phase_T2starw.nii",
    "sub-01/ses-1/anat/sub-01_ses-1_acq-lo_run-1_T1w.json",
    "sub-02/anat/sub-02_mod-FLAIR_defacemask.nii.gz",
    "sub-02/func/sub-02_task-rest_bold.nii.gz",
    "derivatives/other/sub-02/anat/sub-02_desc-preproc_FLAIR.nii.gz",
    "sourcedata/sub-02/anat/sub-02_T1w.nii.gz",
)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "study"
    for name in (*IMAGES, *OTHERS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "dataset_description.json").write_text('{"Name": "study", "BIDSVersion": "1.8.0"}')
    return folder


def test_the_anatomical_images_of_a_dataset_are_found(root):
    assert is_dataset(root)
    assert not is_dataset(root / "sub-01")
    assert expand_inputs([root]) == [root / name for name in IMAGES]
    assert anatomical_images(root, ["02"]) == anatomical_images(root, ["sub-02"]) == [root / IMAGES[2]]
    with pytest.raises(InputError, match=r"Cannot find participant 03 in study: it holds 01, 02\."):
        anatomical_images(root, ["01", "03"])


def test_a_dataset_without_an_anatomical_image_is_named(root):
    for name in IMAGES:
        (root / name).unlink()
    with pytest.raises(InputError, match="it is a BIDS dataset, and no anatomical image is in it"):
        expand_inputs([root])


def test_outputs_keep_the_tree_under_names_of_the_bids_schema(root):
    out = root / "derivatives" / "voxlift"
    found = [path.relative_to(out).as_posix() for path in output_paths(anatomical_images(root), out, root)]
    assert found == [
        "sub-01/ses-1/anat/sub-01_ses-1_acq-lo_run-1_desc-sr_T1w.nii.gz",
        "sub-01/ses-2/anat/sub-01_ses-2_part-mag_desc-sr_T2starw.nii",
        "sub-02/anat/sub-02_desc-sr_FLAIR.nii.gz",
    ]
    rules = regexify_filename_rules(load_schema().rules.files.deriv, load_schema(), level=2)
    for name in found:
        path, named = name.rsplit("/", 1)
        for file in (name, f"{path}/{inferred_name(named)}", re.sub(r"\.nii(\.gz)?$", ".json", name)):
            assert any(re.fullmatch(rule["regex"], file) for rule in rules), file


def test_the_dataset_that_is_made_says_what_it_is(root):
    out = root / "derivatives" / "voxlift"
    describe_derivatives(root, out)
    found = json.loads((out / "dataset_description.json").read_text())
    assert found["DatasetType"] == "derivative"
    assert [one["Name"] for one in found["GeneratedBy"]] == ["voxlift"]
    assert found["SourceDatasets"] == [{"URL": "../../"}]
    assert found["DatasetLinks"] == {"raw": "../.."}
    assert "**/*_quality.html" in (out / ".bidsignore").read_text().splitlines()
    require_own(out)
    (root / "dataset_description.json").write_text('{"Name": "study", "DatasetDOI": "doi:10.1/x"}')
    describe_derivatives(root, out)
    assert json.loads((out / "dataset_description.json").read_text())["SourceDatasets"] == [{"DOI": "doi:10.1/x"}]


@pytest.mark.parametrize("text", ['{"Name": "study"}', '{"GeneratedBy": [{"Name": "fMRIPrep"}]}', "[", "[]"])
def test_the_dataset_of_another_program_is_not_written_into(root, text):
    (root / "dataset_description.json").write_text(text)
    with pytest.raises(InputError, match=r"Cannot write into study: its dataset_description\.json is not one of"):
        require_own(root)
