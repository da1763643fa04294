"""`voxlift upscale`: one JSON object, exit status, and what is recorded."""

import json
import re
from dataclasses import replace
from pathlib import Path

import keras
import nibabel
import numpy as np
import pytest
from mlflow import MlflowClient

from configs.axes import FileShape
from configs.errors import InputError, ShapeError
from configs.schema import Resources
from tasks.artifacts.manifest import CONTRACTS_FILE, PARTS, is_under_contract
from tasks.artifacts.network_file import read_network
from tasks.files.lock import locked
from tasks.volume.grid import Grid
from tasks.volume.nifti import slab_writer, write_volume
from tests.networks import small_restorer
from tests.processes import full_disk
from tests.tasks.damaged import CATALOGUE
from tests.tasks.images import fifteen_storages
from tests.workflow.light_restorer import LightRestorer
from voxlift import Restorer
from workflow.cli import app, main
from workflow.pages.quality import write_quality_page
from workflow.tracking.verification import verify
from workflow.upscale.plan import UpscaleRequest
from workflow.upscale.volume_work import VolumeWork
from workflow.upscale.volumes import only_writer, plan_volumes

KEYS = {
    *("input", "output", "status", "input_shape", "output_shape", "output_spacing", "scale", "shards"),
    *("shards_resumed", "retries", "seconds", "sha256", "consistency"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr("workflow.restore.restoration.worker_restorer", LightRestorer)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    for name in ("sub-01_T1w.nii.gz", "other.nii"):
        write_volume(
            tmp_path / name,
            np.random.default_rng(0).random((9, 10, 11), np.float32),
            Grid(FileShape(9, 10, 11), np.eye(4)),
        )
    (tmp_path / "text.nii").write_text("hello")
    return tmp_path


def upscale(*arguments):
    return app(["upscale", *map(str, arguments)], standalone_mode=False)


@pytest.mark.usefixtures("ray_cluster")
def test_a_failed_volume_is_listed_and_the_others_are_written(place, model, capfd):
    options = ["--out", place / "out", "--model", model, "--spacing", "0.5,0.5,0.5", "--workers", "1", "--json"]
    options.append("--inferred")
    assert upscale(place / "sub-01_T1w.nii.gz", place / "text.nii", place / "other.nii", *options) == 1
    printed = capfd.readouterr()
    report = json.loads(printed.out)
    assert "voxlift: Cannot read text.nii" in printed.err
    plan, started = (printed.err.replace("\n", " ").find(words) for words in ("(least possible budget:", "Restoring"))
    assert 0 < plan < started
    assert [volume["status"] for volume in report["volumes"]] == ["done", "failed", "done"]
    assert set(report["volumes"][0]) >= KEYS
    assert report["volumes"][0]["output"].endswith("sub-01_rec-voxlift_T1w.nii.gz")
    assert report["volumes"][0]["output_spacing"] == pytest.approx([0.5] * 3)
    assert {"overhead", "halo", "core_shape", "budget_mib"} <= set(report["plan"])
    assert {"volumes", "workers", "plan", "peak_rss_mib", "seconds", "voxels_per_second", "mlflow"} <= set(report)
    assert all(report["timings"][kind] > 0 for kind in ("reading", "resampling", "network", "writing"))

    client = MlflowClient(report["mlflow"]["tracking_uri"])
    run = client.get_run(report["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert {"failed": 1, "shards/count": 2}.items() <= run.data.metrics.items()
    assert {"seconds/network", "shards/overhead", "volumes/consistency"} <= set(run.data.metrics)
    assert run.data.params["upscale.spacing"] == "(0.5, 0.5, 0.5)"
    assert "| 3 | done | 18 × 20 × 22 | 0.5 × 0.5 × 0.5 | 1 |" in run.data.tags["mlflow.note.content"]
    assert str(place) not in json.dumps([run.data.params, run.data.tags])
    assert {json.loads(given.dataset.profile)["dtype"] for given in run.inputs.dataset_inputs} == {"float32"}
    pages = [entry.path for entry in client.list_artifacts(run.info.run_id, "quality")]
    assert pages == ["quality/1.html", "quality/3.html"]
    for page in pages:
        content = Path(client.download_artifacts(run.info.run_id, page)).read_text()
        assert not [name for name in ("sub-01", "other_sr", "other.nii", str(place)) if name in content]
    table = (place / "out" / "index.html").read_text()
    assert re.findall(r'href="([^"]+)"', table) == ["other_sr_quality.html", "sub-01_rec-voxlift_T1w_quality.html"]
    found = verify(run.info.run_id), verify(str(place / "out"))
    assert [(one.artifacts, one.damages) for one in found] == [(4, ()), (8, ())]
    (place / "out" / "other_sr_quality.html").write_text("<p>all is well")
    inferred = place / "out" / "sub-01_rec-voxliftinferred_T1w.nii.gz"
    assert report["volumes"][0]["inferred"] == str(inferred)
    inferred.write_bytes(inferred.read_bytes()[:-20])
    damages = {damage.artifact: damage.what for damage in verify(str(place / "out")).damages}
    assert set(damages) == {"other_sr_quality.html", inferred.name}
    assert "truncated" in damages[inferred.name][0]


@pytest.mark.usefixtures("ray_cluster")
def test_without_out_each_output_lies_next_to_its_input_and_the_end_says_where(place, model, voxlift):
    (place / "elsewhere").mkdir()
    (place / "other.nii").rename(place / "elsewhere" / "my scan.nii")
    inputs = [str(place / "sub-01_T1w.nii.gz"), str(place / "elsewhere")]
    command = ["upscale", *inputs, "--model", str(model), "--scale", "2", "--workers", "1"]
    status, out, err = voxlift(*command)
    assert status == 0, err
    lines = out.splitlines()
    for name, quoted in {"sub-01_rec-voxlift_T1w.nii.gz": "{}", "elsewhere/my scan_sr.nii": "'{}'"}.items():
        output = place / name
        page = output.with_name(output.name.removesuffix(".gz").removesuffix(".nii") + "_quality.html")
        assert output.is_file()
        assert (output.parent / ".voxlift").is_dir()
        assert "  " + quoted.format(output) in lines
        assert "  xdg-open " + quoted.format(page) in lines
        assert page.is_file()
    assert f"  mlflow ui --backend-store-uri sqlite:///{place}/mlflow.db --host 127.0.0.1 --port 5000" in lines
    # Outputs that lie next to inputs are not inputs of the next call on their folder.
    (again,) = json.loads(voxlift(*command[:1], *inputs[1:], *command[3:], "--overwrite", "--json")[1])["volumes"]
    assert again["input"].endswith("my scan.nii")


@pytest.mark.usefixtures("ray_cluster")
def test_an_output_that_violates_its_contract_fails(place, model, monkeypatch, capfd):
    def shifted(path, grid, *more):
        return slab_writer(path, replace(grid, affine=grid.affine + np.eye(4, k=3)), *more)

    monkeypatch.setattr("workflow.upscale.volume_work.slab_writer", shifted)
    options = ["--out", place / "out", "--model", model, "--scale", "2,2,2", "--workers", "1", "--json"]
    assert upscale(place / "other.nii", *options) == 1
    (volume,) = json.loads(capfd.readouterr().out)["volumes"]
    assert volume["status"] == "failed"
    departs = "other_sr.nii violates its contract: its affine moves a corner of the field of view by 1 mm"
    assert departs in volume["error"]


@pytest.mark.usefixtures("ray_cluster")
def test_the_first_failure_ends_a_fail_fast_run_in_one_message(place, model, monkeypatch, capfd):
    write_volume(
        place / "bright.nii",
        np.linspace(0, 2e6, 512, dtype=np.float32).reshape(8, 8, 8),
        Grid(FileShape(8, 8, 8), np.eye(4)),
    )
    command = ["upscale", place / "bright.nii", place / "other.nii", "--scale", "2,2,2", "--model", model, "--json"]
    command += ["--out", place / "out", "--fail-fast", "--workers", "1", "--retries", "0"]
    monkeypatch.setattr("sys.argv", ["voxlift", *map(str, command)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capfd.readouterr()
    assert ended.value.code == 1
    assert printed.err.endswith("\nvoxlift: Cannot super-resolve bright.nii: RuntimeError: too bright\n")
    assert json.loads(printed.out) == {"error": "Cannot super-resolve bright.nii: RuntimeError: too bright"}
    assert not list((place / "out").glob("*.nii"))


def test_what_cannot_be_done_is_refused(place, model):
    aim = ["--out", place / "out", "--model", model]
    with pytest.raises(InputError, match="Give --scale I,J,K or --spacing"):
        upscale(place / "other.nii", *aim)
    with pytest.raises(InputError, match="are mutually exclusive"):
        upscale(place / "other.nii", *aim, "--scale", "2,2,2", "--spacing", "1,1,1")
    with pytest.raises(
        InputError, match=r"coarser than its 9x10x11 along j; .*Use --scale 2,1,2 or --spacing 0\.5,1,0\.5"
    ):
        upscale(place / "other.nii", *aim, "--scale", "2,0.5,2")
    with pytest.raises(InputError, match=r"coarser than its 9x10x11 along i and k"):
        upscale(place / "other.nii", *aim, "--spacing", "1.5,1,1.2")
    with pytest.raises(InputError, match=r"Cannot read text\.nii"):
        upscale(place / "text.nii", *aim, "--scale", "2,2,2")
    with pytest.raises(InputError, match=r"holds 0 \.keras files"):
        upscale(place / "other.nii", "--out", place / "out", "--model", place, "--scale", "2,2,2")
    with pytest.raises(InputError, match=r"Cannot restore in tf32 on CPUs: .* Use --precision float32"):
        upscale(place / "other.nii", *aim, "--scale", "2,2,2", "--precision", "tf32")
    inputs = keras.Input((None, None, None, 1))
    keras.Model(inputs, keras.layers.GroupNormalization(1, name="over_all")(inputs)).save(place / "group.keras")
    with pytest.raises(ShapeError, match=r"layer over_all \(GroupNormalization\) would see the shard, not the volume"):
        upscale(place / "other.nii", "--out", place / "out", "--model", place / "group.keras", "--scale", "2,2,2")
    assert not (place / "out").exists()


@pytest.mark.parametrize("name", CATALOGUE)
def test_bad_input_is_refused_before_any_work(name, model, voxlift, tmp_path):
    make, part = CATALOGUE[name]
    arguments = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    scale = () if {"--scale", "--spacing"} & set(arguments) else ("--scale", "2,2,2")
    status, out, err = voxlift("upscale", *arguments, *scale, "--model", str(model), "--out", str(tmp_path / "out"))
    assert status == 2
    assert err.startswith("voxlift: Cannot ")
    assert err.count("\n") == 1
    assert part in err
    assert all(line.startswith(("Loading voxlift …", "Reading 1 volume …")) for line in out.splitlines())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.usefixtures("ray_cluster")
def test_if_no_volume_can_be_used_each_is_named_and_the_status_is_2(place, model, voxlift):
    flat = place / "flat.nii"
    write_volume(flat, np.ones((9, 9, 9), np.float32), Grid(FileShape(9, 9, 9), np.eye(4)))
    aim = ["--out", str(place / "out"), "--model", str(model), "--scale", "2,2,2"]
    status, _, err = voxlift("upscale", str(flat), str(place / "text.nii"), *aim)
    assert status == 2
    assert "voxlift: Cannot use flat.nii: " in err
    assert "voxlift: Cannot read text.nii: " in err
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("voxlift").experiment_id])
    assert run.info.status == "FAILED"
    assert not (place / "out").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_the_geometry_is_printed_as_understood_and_the_slice_axis_may_be_given(place, model, voxlift):
    aim = ["--out", str(place / "out"), "--model", str(model), "--scale", "2,2,2", "--workers", "1"]
    status, out, _ = voxlift("upscale", str(place / "other.nii"), *aim, "--slice-axis", "i")
    assert status == 0
    assert "other.nii: 9x10x11 at 1x1x1 mm, RAS, slices along i, becomes 18x20x22 at 0.5x0.5x0.5 mm" in out


def test_outputs_that_cannot_be_written_are_refused_before_any_work(place, model):
    arguments = [place / "other.nii", "--model", model, "--scale", "2,2,2"]
    with pytest.raises(InputError, match="Cannot write complex64 voxels"):
        upscale(*arguments, "--out", place / "out", "--dtype", "complex64")
    with pytest.raises(InputError, match=r"Cannot write other_sr\.nii: text\.nii is a file, not a folder"):
        upscale(*arguments, "--out", place / "text.nii" / "deeper")
    with pytest.raises(InputError, match=r"MiB are free\. Choose a smaller scale"):
        upscale(place / "other.nii", "--model", model, "--scale", "900,900,900", "--out", place / "out")
    long = (place / "other.nii").rename(place / f"{'n' * 240}.nii")
    with pytest.raises(InputError, match="Rename the input"):
        upscale(long, "--model", model, "--scale", "2,2,2", "--out", place / "out")
    assert not (place / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_one_volume_in_fifteen_storages_gives_one_restored_image(model, voxlift, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    aim = ["--out", str(tmp_path / "out"), "--model", str(model), "--scale", "2,2,2", "--dtype", "float32", "--json"]
    status, out, err = voxlift("upscale", *map(str, fifteen_storages(tmp_path)), *aim)
    assert status == 0, err
    outputs = [volume["output"] for volume in json.loads(out)["volumes"]]
    first, *others = (nibabel.as_closest_canonical(nibabel.load(path)) for path in outputs)
    assert len(others) == 14
    for image in others:
        np.testing.assert_allclose(image.affine, first.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(first.dataobj))


@pytest.mark.usefixtures("ray_cluster")
def test_without_a_model_the_shipped_weights_restore_by_the_acquisition(place, monkeypatch, capfd):
    """The real network: what is given of the acquisition decides on the voxels, and is recorded."""
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
    volumes = {}
    slices = np.random.default_rng(5).gamma(2.0, 300.0, size=(18, 20, 8)).astype(np.float32)
    write_volume(place / "slices.nii", slices, Grid(FileShape(*slices.shape), np.diag([1.0, 1.0, 4.0, 1.0])))
    (place / "slices.json").write_text('{"SliceThickness": 3.5}')
    given = ["--acquisition", "box", "--blur", "0.5,0.5,0", "--slice-thickness", "3", "--inferred"]
    for name, options in {"assumed": [], "given": given}.items():
        command = ["--out", place / name, "--workers", "1", "--json", *options]
        assert upscale(place / "other.nii", place / "slices.nii", *command) is None
        volume, thick = json.loads(capfd.readouterr().out)["volumes"]
        volumes[name] = volume
        page, share = (place / name / "other_sr_quality.html").read_text(), volume["inferred_share"]
        assert '"inferred detail"' in page
        shown = re.search(r"([0-9.]+)% of that beyond cubic interpolation, by energy", page)
        assert shown is not None
        assert 1 < float(shown[1]) < 99
        assert share is None if not options else float(shown[1]) == pytest.approx(100 * share, abs=0.06)
        sidecar = json.loads((place / name / "other_sr.json").read_text())
        assert sidecar["Acquisition"] == volume["acquisition"]
        assert sidecar.get("InferredShare") == share
        assert volume["output_shape"] == [18, 20, 22]
        assert thick["output_shape"] == [18, 20, 32]
        assert f"{25 if options else 12}% of the slice distance in gaps" in thick["acquisition"]
        assert json.loads((place / name / "slices_sr.json").read_text())["ModelDigest"] != sidecar["ModelDigest"]
    assert volumes["assumed"]["acquisition"].startswith("k-space truncation (the model's default")
    assert volumes["given"]["acquisition"] == (
        "box, blurred by 0 x 0.5 x 0.5 voxels FWHM along depth, height and width (given)"
    )
    assert volumes["assumed"]["sha256"] != volumes["given"]["sha256"]
    in_process = Restorer()(nibabel.load(place / "other.nii"))
    np.testing.assert_allclose(in_process.dataobj, nibabel.load(place / "assumed" / "other_sr.nii").dataobj, rtol=1e-4)


def test_a_blur_that_is_none_is_refused(place, capfd):
    with pytest.raises(InputError, match=r"Cannot use --blur 1,-1,0"):
        upscale(place / "other.nii", "--out", place / "out", "--blur", "1,-1,0")
    capfd.readouterr()


def test_finished_outputs_are_not_overwritten_unawares(place, model):
    finished = place / "out" / "other_sr.nii"
    finished.parent.mkdir()
    finished.write_text("hours of work")
    options = ["--out", place / "out", "--model", model, "--scale", "2,2,2"]
    for adapt in ([], ["--adapt"]):
        with pytest.raises(InputError, match=r"Cannot write other_sr\.nii: .* --resume .* --overwrite"):
            upscale(place / "sub-01_T1w.nii.gz", place / "other.nii", *options, *adapt)
    with pytest.raises(InputError, match="not both"):
        upscale(place / "other.nii", *options, "--resume", "--overwrite")
    assert [path.name for path in (place / "out").iterdir()] == ["other_sr.nii"]
    assert finished.read_text() == "hours of work"


def test_an_output_has_one_writer_and_its_folder_many(place, model):
    options = ["--out", place / "out", "--model", model, "--scale", "2,2,2"]
    with locked(place / "out" / ".voxlift" / "other_sr.lock", "it") as lock:
        with pytest.raises(InputError, match=r"Cannot write other_sr\.nii: another run writes it, process \d+ on "):
            upscale(place / "other.nii", *options)
        request = UpscaleRequest(
            [place / "sub-01_T1w.nii.gz"], place / "out", read_network(model), Resources(), (2, 2, 2)
        )
        (work,) = plan_volumes(request)
        assert isinstance(work, VolumeWork)
        with only_writer([work]):
            lock.require_held()
    assert not (place / "out").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_source_that_goes_bad_after_it_was_checked_fails_alone(place, model, monkeypatch, capfd):
    def plan_and_lose(request):
        planned = plan_volumes(request)
        (place / "other.nii").unlink(missing_ok=True)
        return planned

    (place / "out").mkdir()
    (place / "out" / "other_sr.nii").write_text("of an earlier run")
    options = ["--out", place / "out", "--model", model, "--scale", "2,2,2", "--workers", "1", "--json"]
    sources, kept = [place / "other.nii", place / "sub-01_T1w.nii.gz"], (place / "other.nii").read_bytes()
    monkeypatch.setattr("workflow.upscale.run.plan_volumes", plan_and_lose)
    assert upscale(*sources, *options, "--overwrite") == 1
    first, second = json.loads(capfd.readouterr().out)["volumes"]
    assert (first["status"], second["status"]) == ("failed", "done")
    assert "No such file" in first["error"]

    # Of a finished output, the QC page alone needs the source.
    monkeypatch.undo()
    monkeypatch.setattr("workflow.restore.restoration.worker_restorer", LightRestorer)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
    (place / "other.nii").write_bytes(kept)
    assert not upscale(*sources, *options, "--resume")
    (place / "out" / "other_sr_quality.html").unlink()
    monkeypatch.setattr("workflow.upscale.run.plan_volumes", plan_and_lose)
    assert not upscale(*sources, *options, "--resume")
    printed = capfd.readouterr()
    assert "other.nii: no QC page: Cannot read other.nii" in " ".join(printed.err.split())
    assert verify(str(place / "out")).artifacts == 5
    assert verify(str(place / "out")).damages == ()


@pytest.mark.usefixtures("ray_cluster")
def test_a_disk_that_is_full_when_the_page_is_written_costs_the_page_alone(place, model, store, voxlift, monkeypatch):
    def without_room(path, case):
        with full_disk(2**21 if path.name.startswith("other") else 2**30):  # less than the viewer in the page takes
            return write_quality_page(path, case)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setattr("workflow.upscale.run.write_quality_page", without_room)
    out = place / "out"
    options = ["--out", str(out), "--model", str(model), "--scale", "2", "--workers", "1", "--json"]
    command = ["upscale", str(place / "other.nii"), str(place / "sub-01_T1w.nii.gz"), *options]
    outputs = out / "other_sr.nii", out / "sub-01_rec-voxlift_T1w.nii.gz"
    written = None
    for again in ([], ["--resume"]):
        status, printed, err = voxlift(*command, *again)
        report = json.loads(printed)
        first, second = report["volumes"]
        assert (status, first["status"], second["status"]) == (1, "failed", "resumed" if again else "done")
        assert first["error"] == (
            f"Cannot make the QC page of other.nii: [Errno 27] File too large: '{out}/other_sr_quality.html'."
            " other_sr.nii is complete, and --resume adds the page."
        )
        assert [line for line in err.splitlines() if line.startswith("voxlift: ")] == [f"voxlift: {first['error']}"]
        assert sorted(path.name for path in out.rglob("*quality*")) == ["sub-01_rec-voxlift_T1w_quality.html"]
        assert verify(str(out)).damages == ()
        times = [path.stat().st_mtime_ns for path in outputs]
        written = written or times
    monkeypatch.setattr("workflow.upscale.run.write_quality_page", write_quality_page)
    status, printed, err = voxlift(*command, "--resume")
    report = json.loads(printed)
    assert (status, [volume["status"] for volume in report["volumes"]]) == (0, ["resumed", "resumed"]), err
    assert (report["seconds"], [path.stat().st_mtime_ns for path in outputs]) == (0, written)
    table = (out / "index.html").read_text()
    assert re.findall(r'href="([^"]+)"', table) == ["other_sr_quality.html", "sub-01_rec-voxlift_T1w_quality.html"]
    assert (verify(str(out)).artifacts, verify(str(out)).damages) == (6, ())
    pages = MlflowClient(store.uri).list_artifacts(report["mlflow"]["run_id"], "quality")
    assert [entry.path for entry in pages] == ["quality/1.html"]  # the other is in the run that made it


@pytest.mark.usefixtures("ray_cluster")
def test_a_page_that_was_left_out_is_made_by_a_resumed_run(place, model):
    command = [
        place / "other.nii",
        "--out",
        place / "out",
        "--model",
        model,
        "--scale",
        "2",
        "--workers",
        "1",
        "--json",
    ]
    assert not upscale(*command, "--no-qc")
    page = place / "out" / "other_sr_quality.html"
    assert not page.exists()
    written = (place / "out" / "other_sr.nii").stat().st_mtime_ns
    assert not upscale(*command, "--resume")
    assert page.exists()
    assert (place / "out" / "other_sr.nii").stat().st_mtime_ns == written
    # As after a kill between the page and its entry, which is noted next.
    (place / "out" / CONTRACTS_FILE).unlink()
    noted = [path for path in (place / "out").glob(PARTS) if page.name in path.read_text()]
    for path in noted:
        path.unlink()
    assert not is_under_contract(page)
    assert not upscale(*command, "--resume")
    assert is_under_contract(page)
