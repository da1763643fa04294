import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import models.stages.upsampler
from models.stages.presets import PRESETS
from models.stages.stage import Stage
from models.stages.upsampler import ImplementationComparison
from workflow.cli import app
from workflow.shapes import read_stage, stage_text

ROOT = Path(__file__).parents[2]
LATENT = ("--latent", "2,2,7,7,64")
FORMS = {
    **{name: ("--preset", name) for name in PRESETS},
    "stages": (*LATENT, "--stage", "32,k3,s2", "--stage", "1,k3,s1x2x2"),
    "target": (*LATENT, "--target", "2,16,112,112,1"),
    "both": (*LATENT, "--stage", "32,k3,s2", "--target", "2,3,13,14,32"),
}
STAGE_KEYS = {
    *("input_shape", "output_shape", "weights_shape", "filters", "kernel_size", "strides", "padding", "parameters"),
    *("multiply_adds", "forward_check", "caffe", "torch", "overlap", "holes", "checkerboard", "shift"),
}
KEYS = {"stages", "output_shape", "total_stride", "receptive_field", "warnings"}


def voxlift(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "workflow", "shapes", *arguments],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )


def as_json(*arguments):
    done = voxlift(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("form", FORMS)
def test_json_has_the_keys_that_were_promised(form):
    result = as_json(*FORMS[form])
    assert set(result) == KEYS | ({"solutions"} if form == "target" else set())
    for stage in result["stages"]:
        assert set(stage) == STAGE_KEYS
        assert set(stage["forward_check"]) == {"expected_input", "ok"}
        for elsewhere in ("caffe", "torch"):
            assert set(stage[elsewhere]) == {"pad", "output_padding", "output_shape", "equivalent", "reason"}
    assert all(
        stage["forward_check"] == {"expected_input": stage["input_shape"], "ok": True} for stage in result["stages"]
    )
    assert result["output_shape"] == result["stages"][-1]["output_shape"]


def test_json_of_the_three_stages_with_kernel_3():
    result = as_json("--preset", "three-stage-k3")
    assert [stage["output_shape"] for stage in result["stages"]] == [
        [2, 4, 14, 14, 32],
        [2, 8, 28, 28, 16],
        [2, 16, 112, 112, 1],
    ]
    assert [stage["holes"] for stage in result["stages"]] == [False, False, True]
    assert [stage["checkerboard"] for stage in result["stages"]] == [True, True, True]
    assert [stage["shift"] for stage in result["stages"]] == [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, -0.5, -0.5]]
    assert result["stages"][2]["overlap"] == [[2, 1], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert result["total_stride"] == [8, 16, 16]


def test_json_of_the_clean_form_names_the_pads():
    result = as_json("--preset", "three-stage-clean")
    assert result["warnings"] == []
    assert result["receptive_field"] == [[1, 1], [1, 1], [1, 1]]
    for elsewhere in ("caffe", "torch"):
        assert [stage[elsewhere]["pad"] for stage in result["stages"]] == [[1, 1, 1], [1, 1, 1], [1, 2, 2]]
        assert all(stage[elsewhere]["equivalent"] for stage in result["stages"])


def test_top_level_describes_the_first_solution():
    result = as_json(*FORMS["target"])
    first = result["solutions"][0]
    assert {key: result[key] for key in KEYS} == first
    assert {tuple(solution["output_shape"]) for solution in result["solutions"]} == {(2, 16, 112, 112, 1)}


def test_channels_and_number_of_stages_are_heeded():
    result = as_json(*FORMS["target"], "--stages", "3", "--channels", "40,20,1")
    assert [stage["filters"] for stage in result["stages"]] == [40, 20, 1]


@pytest.mark.parametrize("form", FORMS)
def test_tables_stay_within_100_columns_and_name_every_stage(form):
    done = voxlift(*FORMS[form])
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "…" not in done.stdout
    assert "2,2,7,7,64" in done.stdout


def test_it_answers_within_a_second_and_loads_nothing_heavy():
    script = (
        "import sys; from workflow.cli import app\n"
        f"app(['shapes', *{FORMS['target']}], standalone_mode=False)\n"
        "print(sorted({'tensorflow', 'keras', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "[]"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "Cannot show stages: give"),
        (("--preset", "five-stage"), "four-stage-k3, four-stage-clean"),
        (LATENT, "Cannot show stages: give"),
        (("--latent", "2,7,7,64", "--stage", "1,k3"), "needs five: batch, depth, height, width, channels"),
        (("--latent", "2,2,7,0,64", "--stage", "1,k3"), "width 0"),
        (("--latent", "2,2,7,7", "--target", "2,2,x"), "five"),
        (("--latent", "two", "--stage", "1,k3"), "whole numbers between commas"),
        ((*LATENT, "--stage", "1,s2"), "needs filters and a kernel"),
        ((*LATENT, "--stage", "1,k3,q2"), "'q2' is none of its parts"),
        ((*LATENT, "--stage", "1,k3x3,s2"), "'k3x3' is none of its parts"),
        ((*LATENT, "--stage", "1,k3,s0"), "depth: strides is 1 to 1024"),
        ((*LATENT, "--stage", "1,k3,s-2"), "depth: strides is 1 to 1024"),
        ((*LATENT, "--stage", "1,k3,s2,op2"), "output_padding is at least 0 and below the stride 2; 0 or 1 would do"),
        ((*LATENT, "--stage", "1,k3,s2,d2"), "a stride above 1"),
        ((*LATENT, "--stage", "32,k3,s1", "--target", "2,4,14,14,32"), "size 2 would do, or stride 2 or 3"),
        ((*LATENT, "--target", "2,15,112,112,1"), "[2, 14, 112, 112, 1] or [2, 16, 112, 112, 1]"),
        (("--preset", "four-stage-k3", "--stages", "2"), "--stages and --channels"),
        (("--preset", "four-stage-k3", "--stages", "0"), "--stages and --channels"),
        ((*FORMS["target"], "--channels", ""), "Cannot read --channels"),
        (("--latent", "", "--stage", "1,k3"), "Cannot read --latent"),
        (("--latent", "1,10000,9999,100000,1", "--stage", "1,k3", "--verify"), "hold 19,998,000,000,028 values"),
        ((*LATENT, "--stage", "1,k3,s2,s4"), "'s4' says s a second time"),
        ((*LATENT, "--stage", "1,k3,s1000000"), "Received strides=1000000."),
        ((*LATENT, "--stage", f"1,k{'9' * 5000}"), "is none of its parts"),
        ((*LATENT, "--stage", f"{'9' * 5000},k3"), "needs filters and a kernel"),
        (("--latent", f"{'9' * 4000},2,7,7,64", "--stage", "1,k3"), "every size is at most"),
    ],
)
def test_what_cannot_be_gets_one_message_and_status_2(arguments, said):
    done = voxlift(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("voxlift: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_an_error_is_one_object_too():
    done = voxlift(*LATENT, "--target", "2,15,112,112,1", "--json")
    assert done.returncode == 2
    assert "depth" in json.loads(done.stdout)["error"]


def test_verify_runs_layer_and_operation(capfd):
    app(["shapes", *FORMS["both"], "--verify", "--json"], standalone_mode=False)
    result = json.loads(capfd.readouterr().out)
    assert set(result["verified"]) == {"shapes", "max_abs_difference"}
    assert result["verified"]["shapes"] is True
    assert result["verified"]["max_abs_difference"] <= 1e-5


@pytest.mark.parametrize("found", [ImplementationComparison(False, 0.0), ImplementationComparison(True, 1e-3)])
def test_a_failed_verification_is_said_and_is_status_1(found, monkeypatch):
    monkeypatch.setattr(models.stages.upsampler, "compare_implementations", lambda *_: found)
    done = CliRunner().invoke(app, ["shapes", *FORMS["stages"], "--verify"])
    assert done.exit_code == 1
    assert "NOT verified" in done.output


@given(
    st.integers(1, 99),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(2, 9)] * 3),
    st.sampled_from(["same", "valid"]),
    st.sampled_from(["plain", "dilated", "padded"]),
)
def test_a_stage_is_read_as_it_is_written(filters, kernel, growth, padding, kind):
    odd = tuple(2 * size + 1 for size in kernel)
    stage = {
        "plain": Stage(filters, kernel, growth, padding=padding),
        "dilated": Stage(filters, kernel, (1, 1, 1), growth, padding),
        "padded": Stage(filters, odd, growth, padding=padding, output_padding=tuple(size - 1 for size in growth)),
    }[kind]
    assert read_stage(stage_text(stage)) == stage


@pytest.mark.parametrize("text", ["1,k3,s2,pvalid", "1,k=3,s=2,p=valid", "1, s2, k3, valid"])
def test_a_stage_may_be_written_in_several_ways(text):
    assert read_stage(text) == Stage(1, (3, 3, 3), (2, 2, 2), padding="valid")
