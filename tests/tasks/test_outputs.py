"""Names of outputs: BIDS, others, and no two alike."""

from pathlib import Path

import pytest

from configs.errors import InputError
from tasks.files.outputs import inferred_name, output_name, output_paths, sidecar_name, without_outputs
from tasks.volume.inspection import inspect_volume


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("sub-01_T1w.nii.gz", "sub-01_rec-voxlift_T1w.nii.gz"),
        ("sub-01_ses-2_task-rest_run-1_bold.nii.gz", "sub-01_ses-2_task-rest_rec-voxlift_run-1_bold.nii.gz"),
        ("sub-01_acq-lo_ce-gad_T1w.nii", "sub-01_acq-lo_ce-gad_rec-voxlift_T1w.nii"),
        ("sub-01_space-MNI_desc-preproc_T1w.nii.gz", "sub-01_rec-voxlift_space-MNI_desc-preproc_T1w.nii.gz"),
        ("sub-01_rec-norm_T1w.nii.gz", "sub-01_rec-normvoxlift_T1w.nii.gz"),
        ("sub-01_T1w.mgz", "sub-01_rec-voxlift_T1w.nii.gz"),
        ("sub-01.nii.gz", "sub-01_sr.nii.gz"),
        ("T1.mgz", "T1_sr.nii.gz"),
        ("scan.1.2.nii", "scan.1.2_sr.nii"),
        ("scan.hdr", "scan_sr.nii"),
        ("scan.img.gz", "scan_sr.nii.gz"),
        ("scan.nii.bz2", "scan_sr.nii.gz"),
        ("epi+orig.BRIK.gz", "epi+orig_sr.nii.gz"),
        ("SCAN.NII.GZ", "SCAN_sr.nii.gz"),
    ],
)
def test_an_output_is_called_after_its_source(source, expected):
    assert output_name(source) == expected


def test_a_sidecar_is_called_after_its_output():
    assert sidecar_name("sub-01_rec-voxlift_T1w.nii.gz") == "sub-01_rec-voxlift_T1w.json"
    assert sidecar_name("scan.1_sr.nii") == "scan.1_sr.json"


@pytest.mark.parametrize(
    "pair",
    [
        ("a/x.nii.gz", "b/x.nii.gz"),
        ("x.nii.gz", "x.mgz"),
        ("X.nii", "x.nii"),
        ("x.nii", "x.nii.gz"),  # one sidecar
        ("caf\u00e9.nii", "cafe\u0301.nii"),
    ],
)
def test_two_inputs_for_one_output_are_an_error_before_work(pair, tmp_path):
    with pytest.raises(InputError, match="2 inputs would become this one output"):
        output_paths([tmp_path / one for one in pair], tmp_path / "out")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("scan.1_sr.nii", "scan.1_sr_inferred.nii"),
        ("sub-01_acq-lo_rec-normvoxlift_run-2_T2w.nii.gz", "sub-01_acq-lo_rec-normvoxliftinferred_run-2_T2w.nii.gz"),
        ("sub-01_desc-preprocsr_T1w.nii.gz", "sub-01_desc-preprocsrinferred_T1w.nii.gz"),
    ],
)
def test_the_inferred_detail_is_called_after_its_output(output, expected):
    assert inferred_name(output) == expected


def test_outputs_and_their_inferred_detail_are_no_sources_of_the_next_call():
    sources = [Path("scan.nii.gz"), Path("sub-01_T1w.nii.gz")]
    outputs = output_paths(sources, None)
    assert without_outputs([*sources, *outputs, *(Path(inferred_name(one.name)) for one in outputs)]) == sources


def test_an_input_is_not_overwritten(tmp_path):
    with pytest.raises(InputError, match=r"x_sr_inferred\.nii: it would overwrite an input"):
        output_paths([tmp_path / "x.nii", tmp_path / "x_sr_inferred.nii"], tmp_path)
    with pytest.raises(InputError, match="overwrite an input"):
        output_paths([tmp_path / "x.nii", tmp_path / "x_sr.nii"], tmp_path)


def test_a_link_to_itself_is_an_input_like_any_other(tmp_path):
    loop = tmp_path / "loop.nii.gz"
    loop.symlink_to(loop)
    assert output_paths([loop], None) == [tmp_path / "loop_sr.nii.gz"]
    with pytest.raises(InputError, match=r"^Cannot read loop\.nii\.gz: "):
        inspect_volume(loop)


def test_different_inputs_go_side_by_side():
    given = [Path("in/a.nii.gz"), Path("in/b.nii.gz"), Path("in/sub-1_T2w.nii.gz")]
    expected = [Path("out/a_sr.nii.gz"), Path("out/b_sr.nii.gz"), Path("out/sub-1_rec-voxlift_T2w.nii.gz")]
    assert output_paths(given, Path("out")) == expected
