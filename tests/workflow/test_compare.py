"""Runs side by side: what differs, what is best, and that a page of it stands alone."""

import csv
import io
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import workflow.tracking as tracking
from configs.errors import InputError
from workflow.cli import app
from workflow.evaluate.comparison import as_csv, compare, comparison_table, write_comparison
from workflow.terminal.console import screen
from workflow.tracking.reading import PICTURES, RunRecord, read_curves, read_runs
from workflow.tracking.store import opened_store

ROOT = Path(__file__).parents[2]


def run(name, psnr=None, **changes):
    metrics = {} if psnr is None else {"psnr/restored": psnr, "psnr/cubic": 27.9, "seconds/training": 100 / psnr}
    known = {
        "run_id": f"{name}0123",
        "name": name,
        "status": "FINISHED",
        "started": 0,
        "seconds": 60.0,
        "parent": None,
        "parameters": {"training.steps": "300", "training.seed": "0"},
        "metrics": metrics,
        "tags": {"degradation": "iso2x"},
        "inputs": ("abc",),
        "artifacts": f"mlflow-artifacts:/1/{name}0123/artifacts",
    }
    return RunRecord(**(known | changes))


def test_the_best_comes_first_and_what_has_no_score_last():
    runs = [run("none"), run("good", 31.0), run("best", 31.5), run("poor", 27.0)]
    found = compare(runs, "psnr")
    assert found.sorted_by == "psnr/restored"
    assert [row.name for row in found.rows] == ["best", "good", "poor", "none"]
    assert [row.name for row in compare(runs, "seconds/training").rows] == ["best", "good", "poor", "none"]
    assert [row.name for row in compare(runs).rows] == ["none", "good", "best", "poor"]


def test_trainings_are_compared_by_their_validation_next_to_interpolation():
    kept = {"validation/psnr_cubic": 28.0, "train/loss": 0.1}
    runs = [run(name, metrics={"validation/psnr": psnr, **kept}) for name, psnr in (("a", 29.0), ("b", 30.0))]
    found = compare(runs, "psnr")
    assert found.sorted_by == "validation/psnr"
    assert [row.scores for row in found.rows] == [
        {"validation/psnr": psnr, "validation/psnr_cubic": 28.0} for psnr in (30.0, 29.0)
    ]
    assert compare(runs, "train/loss").scores == ("train/loss", "validation/psnr", "validation/psnr_cubic")
    assert compare(runs).scores == ("validation/psnr", "validation/psnr_cubic")


def test_only_what_differs_is_shown():
    other = {"training.steps": "600", "training.seed": "0", "training.loss": "ssim"}
    found = compare([run("a", 31.0), run("b", 32.0, parameters=other)])
    assert found.differing == ("training.loss", "training.steps")
    assert [dict(row.parameters) for row in found.rows] == [
        {"training.loss": "", "training.steps": "300"},
        {"training.loss": "ssim", "training.steps": "600"},
    ]


def test_runs_that_are_not_comparable_are_reported():
    runs = [run("a", 31.0), run("b", 30.0, tags={"degradation": "thick4x"}, inputs=("def",), status="KILLED")]
    text = " ".join(compare(runs).remarks)
    for part in ("iso2x, thick4x", "different volumes", "1 of 2 runs did not finish"):
        assert part in text
    assert compare([run("a", 31.0), run("b", 32.0)]).remarks == ()
    (remark,) = compare([run("a", 31.0), run("b", metrics={"psnr/restored": 32.0, "failed": 1.0})]).remarks
    assert remark == "volumes failed in 1 of 2 runs: their scores are means over the others"


def test_a_metric_that_no_run_has_is_refused():
    with pytest.raises(InputError, match="There are: psnr/cubic, psnr/restored"):
        compare([run("a", 31.0)], "psrn")
    with pytest.raises(InputError, match="there is no run"):
        compare([])


@pytest.fixture
def wordy():
    """Runs with long names, long values and more parameters than a narrow table holds."""
    keys = [f"section.a_long_name_of_a_key_{number}" for number in range(9)]
    return [
        run(
            f"training number {number} of a sweep-over_many_parameters",
            30.0 + number,
            parameters={**{key: f"{number}{key[-1]}" for key in keys}, "training.steps": "300"},
            started=number * 86_400_000,
        )
        for number in range(4)
    ]


@pytest.mark.parametrize("width", [None, 80], ids=["short", "all columns"])
def test_the_table_fits_80_columns_and_cuts_no_name(wordy, width, capsys):
    found = compare(wordy, "psnr")
    with screen(as_json=False) as opened:
        opened.console.width = 80
        opened.show(found, *comparison_table(found, width))
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    lines = printed.splitlines()
    header = next(line for line in lines if line.lstrip().startswith("run "))
    starts = [0, *(match.end() for match in re.finditer(r" {2,}", header)), 80]

    def column(number):
        return "".join(line[slice(*starts[number : number + 2])].strip() for line in lines)

    for row in found.rows:
        assert row.run_id[:8] in printed
        assert f"{row.scores['psnr/restored']:.4g}" in printed
    if width:
        assert {*found.differing, "psnr/cubic", "psnr/restored"} <= set(printed.split())
        assert "1970-01-03" in printed
        return
    assert all(row.name.replace(" ", "") in column(1).replace(" ", "") for row in found.rows)
    assert [name in column(2) for name in found.differing] == [True] * 5 + [False] * 4
    assert "4 more parameters differ; --all-columns shows them" in printed
    assert "+5.1" in printed  # over cubic


def test_csv_reads_back():
    runs = [run('a, the "first"', 31.25), run("b", parameters={"training.steps": "600"})]
    rows = list(csv.DictReader(io.StringIO(as_csv(compare(runs)))))
    assert [row["name"] for row in rows] == ['a, the "first"', "b"]
    assert rows[0]["psnr/restored"] == "31.25"
    assert rows[1]["psnr/restored"] == ""
    assert rows[1]["training.steps"] == "600"


@pytest.fixture(scope="module")
def recorded(store, tmp_path_factory):
    for steps in (100, 200):
        with tracking.recorded_run("compared", f"<b>{steps}</b>") as recorder:
            recorder.parameters({"training.steps": str(steps), "training.seed": "0"})
            recorder.metrics({"psnr/restored": 28 + steps / 100, "psnr/cubic": 28, "psnr/trilinear": 27})
            for step in range(1, 4):
                recorder.metrics({"train/loss": 1 / step / steps}, step)
            if steps == 200:
                planes = tmp_path_factory.mktemp("planes") / "planes.png"
                Image.new("L", (4, 4)).save(planes)
                recorder.artifact(planes, PICTURES)


def test_what_was_recorded_is_compared(recorded, tmp_path, capfd):
    done = CliRunner().invoke(
        app, ["compare", "--experiment", "compared", "--sort", "psnr", "--out", str(tmp_path), "--json"]
    )
    assert done.exit_code == 0, done.exception
    found = json.loads(capfd.readouterr().out)
    assert [row["parameters"] for row in found["rows"]] == [{"training.steps": "200"}, {"training.steps": "100"}]
    assert found["rows"][0]["scores"] == {"psnr/cubic": 28, "psnr/restored": 30, "psnr/trilinear": 27}
    assert not any(name.startswith("system/") for name in found["rows"][0]["metrics"])
    assert {path.name for path in tmp_path.iterdir()} == {"comparison.csv", "comparison.html", "comparison.png"}
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "comparison.html").read_text()
    assert "&lt;b&gt;200&lt;/b&gt;" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert re.search(r"<td>20\d\d-\d\d-\d\d \d\d:\d\d<td>FINISHED", page)
    assert page.count("<img") == 2  # the plots, and the planes that one of the runs has recorded


def test_failed_runs_and_parents_are_compared_only_if_asked_for(store, capfd):
    with tracking.recorded_run("family", "parent") as parent:
        for name in ("child", "broken"):
            with tracking.recorded_run("family", name, parent=parent.address.run_id) as recorder:
                recorder.failed = name == "broken"

    def names(*options):
        assert CliRunner().invoke(app, ["compare", "--experiment", "family", "--json", *options]).exit_code == 0
        found = json.loads(capfd.readouterr().out)
        return {row["name"] for row in found["rows"]}, found["remarks"]

    shown, remarks = names()
    assert shown == {"child"}
    assert remarks == ["left out: 2 of 3 runs (failed, killed, or parents of others); --all-runs shows them"]
    assert names("--all-runs")[0] == {"child", "broken", "parent"}
    assert names("--runs", "broken,child")[0] == {"child", "broken"}


def test_an_experiment_without_a_finished_run_names_the_option(store):
    with tracking.recorded_run("hopeless", "broken") as recorder:
        recorder.failed = True
    with pytest.raises(InputError, match=r"none of the 1 runs of hopeless has finished.*--all-runs"):
        app(["compare", "--experiment", "hopeless"], standalone_mode=False)


def test_nothing_empty_is_drawn(tmp_path):
    files = write_comparison(tmp_path, compare([run("a"), run("b")]), {})
    assert [path.name for path in files] == ["comparison.csv", "comparison.html"]
    assert "<img" not in (tmp_path / "comparison.html").read_text()
    scored, curve = compare([run("a", 31.0)]), {"a0123": [(1, 0.5), (2, 0.25)]}
    widths = []
    for number, (found, curves) in enumerate([(scored, {}), (compare([run("a")]), curve), (scored, curve)]):
        write_comparison(tmp_path / str(number), found, curves)
        with Image.open(tmp_path / str(number) / "comparison.png") as picture:
            widths.append(picture.width)
    assert widths[0] == widths[1] == widths[2] / 2


def test_runs_are_found_by_name_or_the_start_of_their_id(recorded):
    with opened_store("read runs") as client:
        first, second = read_runs(client, "compared")
        assert read_runs(client, "compared", [second.run_id[:8], first.name]) == [second, first]
        curve = read_curves(client, [first.run_id], "train/loss")[first.run_id]
        assert curve == [(1, 1 / 200), (2, 1 / 2 / 200), (3, 1 / 3 / 200)]
        with pytest.raises(InputError, match="0 runs of the experiment"):
            read_runs(client, "compared", ["zzz"])
        with pytest.raises(InputError, match=r"The store has: .*compared"):
            read_runs(client, "compare")


@pytest.mark.slow
def test_two_hundred_runs_are_compared_in_twice_the_time_that_the_store_takes_to_open(store, tmp_path):
    """The command, from its start to its last line, on runs with curves and system metrics; the page has plots."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking.tracking_uri())
    experiment = client.create_experiment("many")
    for number in range(200):
        run_id = client.create_run(experiment, run_name=f"run {number}").info.run_id
        parameters = [Param(f"section.key{key}", str(key * (number % 7 if key % 9 == 0 else 1))) for key in range(60)]
        metrics = [Metric(f"psnr/{name}", 30 + number / 100, 0, 0) for name in ("restored", "cubic", "trilinear")]
        metrics += [Metric("train/loss", 1 / step, 0, step) for step in range(1, 201)]
        metrics += [Metric(f"system/{name}", 1.0, 0, step) for name in "abcdefghijkl" for step in range(20)]
        client.log_batch(run_id, params=parameters, metrics=metrics)
        client.set_terminated(run_id)
    command = ["compare", "--experiment", "many", "--sort", "psnr", "--out", str(tmp_path), "--json"]
    open_store = f"from mlflow import MlflowClient; MlflowClient({tracking.tracking_uri()!r}).search_experiments()"
    least, _ = _processor_seconds("-c", open_store)
    taken, done = _processor_seconds("-m", "workflow", *command)
    assert taken < 2 * least
    found = json.loads(done.stdout)
    assert len(found["rows"]) == 200
    assert len(found["differing"]) == 6
    assert found["rows"][0]["name"] == "run 199"


def _processor_seconds(*arguments):
    """Run Python and return the processor seconds it took, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done
