"""The JSON next to an output: BIDS derivatives' keys."""

import json

from tasks.volume.sidecar import Sidecar, write_sidecar


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
