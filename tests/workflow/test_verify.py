"""`voxlift verify` finds and names every kind of damage to what a run, or a folder, holds."""

import gzip
import json
import os
import shutil
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from typer.testing import CliRunner

import workflow.tracking as tracking
from configs.axes import FileShape, NetworkShape
from models.network.restorer import build_restorer
from models.stages.stage import Stage
from tasks.artifacts.contracts import ModelContract, volume_contract
from tasks.artifacts.manifest import manifest_entry, write_contracts
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_volume
from workflow.cli import app

GRID = Grid(FileShape(6, 8, 10), np.array([[-0.9, 0, 0, 30], [0, 1.1, 0, -20], [0, 0, 2.5, 3], [0, 0, 0, 1]]))
VOLUME = "volumes/restored.nii.gz"
MODEL = "model/data/model.keras"


def saved_restorer(path, last=(1, 2, 2)):
    build_restorer((Stage(2, (4, 4, 4), (2, 2, 2)), Stage(1, (4, 4, 4), last)), latent_filters=2).save(path)
    return path


def record(store, folder, seed):
    """One run with a volume, a model, a picture and its configuration; returns its id and its artifacts' folders."""
    folder.mkdir()
    voxels = np.random.default_rng(seed).random(GRID.shape, np.float32)
    write_volume(folder / "restored.nii.gz", voxels, GRID, dtype="float32")
    (folder / "comparison.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(200)))
    model = saved_restorer(folder / "model.keras")
    with tracking.recorded_run("verified", "small") as recorder:
        recorder.text("training: {steps: 3}\n", "config.yaml")
        recorder.artifact(folder / "comparison.png", "pictures")
        recorder.artifact(folder / "restored.nii.gz", "volumes", volume_contract(GRID, "float32"))
        contract = ModelContract(total_stride=(2, 4, 4))
        (uri,) = tracking.logged_model(recorder.address, model, [NetworkShape(2, 4, 4)], contract)
    run = MlflowClient(tracking.tracking_uri()).get_run(recorder.address.run_id)
    model = MlflowClient(tracking.tracking_uri()).get_logged_model(uri.removeprefix("models:/"))
    return run.info.run_id, store.local(run.info.artifact_uri), store.local(model.artifact_location)


@pytest.fixture(scope="module")
def runs(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return record(store, folder / "one", 1), record(store, folder / "two", 2)


@pytest.fixture
def run(runs, tmp_path):
    """The first run; whatever a test does to its files is undone."""
    (run_id, artifacts, model), _ = runs
    for kept in (artifacts, model):
        shutil.copytree(kept, tmp_path / kept.parent.name)
    yield run_id, artifacts, model
    for kept in (artifacts, model):
        shutil.rmtree(kept)
        shutil.copytree(tmp_path / kept.parent.name, kept)


@pytest.fixture
def verify(capfd):
    """Exit status of `voxlift verify`, and the damages that it names."""

    def run(target):
        capfd.readouterr()
        done = CliRunner().invoke(app, ["verify", str(target), "--json"])
        return done.exit_code, {
            d["artifact"]: "; ".join(d["what"]) for d in json.loads(capfd.readouterr().out)["damages"]
        }

    return run


def test_an_untouched_run_passes(run, verify):
    run_id, _, _ = run
    assert verify(run_id) == (0, {})
    assert verify(f"runs:/{run_id}") == (0, {})


def at(place, content):
    """Write bytes over those of an decompressed NIfTI file."""

    def damage(path):
        unfolded = bytearray(gzip.decompress(path.read_bytes()))
        unfolded[place : place + len(content)] = content
        path.write_bytes(gzip.compress(bytes(unfolded)))

    return damage


def flip(path):
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 16
    path.write_bytes(held)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def resave(change):
    def damage(path):
        image = nibabel.load(path)
        nibabel.save(change(np.asarray(image.dataobj), image.affine), path)

    return damage


def edit_signature(path):
    content = yaml.safe_load(path.read_text())
    content["signature"]["inputs"] = content["signature"]["inputs"].replace("-1, 1]", "-1, 2]")
    path.write_text(yaml.safe_dump(content))


DAMAGES = {
    "a byte flipped in a compressed volume": (VOLUME, flip, "not the file that was recorded"),
    "a volume cut short": (VOLUME, cut, "truncated"),
    "a header of another shape": (VOLUME, at(42, struct.pack("<3h", 6, 8, 9)), "k must be 10, received 9"),
    "a header of another type": (VOLUME, at(70, struct.pack("<2h", 8, 32)), "type must be float32, received int32"),
    "another affine": (VOLUME, at(280 + 12, struct.pack("<f", 31)), "moves a corner of the field of view by 1 mm"),
    "another spacing": (VOLUME, at(76 + 12, struct.pack("<f", 2.6)), "spacing along k must be 2.5 mm, the header's"),
    "values scaled by the header": (VOLUME, at(112, struct.pack("<f", 2)), "not the file that was recorded"),
    "a voxel that is no number": (VOLUME, at(352, struct.pack("<f", np.nan)), "NaN or infinite"),
    "a volume saved flipped": (
        VOLUME,
        resave(lambda voxels, affine: nibabel.Nifti1Image(voxels[::-1], affine)),
        "not the file that was recorded",
    ),
    "a volume on another grid": (
        VOLUME,
        resave(lambda voxels, affine: nibabel.Nifti1Image(voxels[:, ::2], affine @ np.diag([1, 2, 1, 1]))),
        "j must be 8, received 4; spacing along j must be 1.1 mm, received 2.2 mm",
    ),
    "a file that is missing": (VOLUME, Path.unlink, "it does not exist"),
    "an empty file": ("config.yaml", lambda path: path.write_bytes(b""), "0 bytes instead of"),
    "another configuration": (
        "config.yaml",
        lambda path: path.write_text("training: {steps: 4}\n"),
        "its bytes were changed",
    ),
    "a picture that is none": ("pictures/comparison.png", lambda path: path.write_bytes(b"GIF89a"), "no PNG picture"),
    "a model of another architecture": (
        MODEL,
        lambda path: saved_restorer(path, (2, 2, 2)),
        "total stride along depth must be 2, received 4",
    ),
    "a model of the same architecture": (MODEL, saved_restorer, "not the file that was recorded"),
    "a model cut short": (MODEL, cut, "not a Keras model"),
    "a model that is missing": (MODEL, Path.unlink, "it does not exist"),
    "another signature": ("model/MLmodel", edit_signature, "not the file that was recorded"),
    "a file under no contract": ("volumes/extra.nii.gz", lambda path: path.write_bytes(b"?"), "under no contract"),
    "contracts that are missing": ("contracts.json", Path.unlink, "it does not exist"),
    "contracts that are none": ("contracts.json", lambda path: path.write_text("{"), "holds no contracts"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_damage_is_found_and_named(run, verify, kind):
    run_id, artifacts, model = run
    name, damage, message = DAMAGES[kind]
    damage(model / name.removeprefix("model/") if name.startswith("model/") else artifacts / name)
    status, damages = verify(run_id)
    assert status == 2
    assert list(damages) == [name]
    assert message in damages[name]


@pytest.mark.parametrize("name", [VOLUME, "contracts.json"])
def test_the_file_of_another_run_is_found(run, runs, verify, name):
    run_id, artifacts, _ = run
    shutil.copyfile(runs[1][1] / name, artifacts / name)
    status, damages = verify(run_id)
    assert status == 2
    assert name in damages


def test_a_model_that_has_lost_its_folder_is_named_file_by_file(run, verify):
    run_id, _, model = run
    shutil.rmtree(model)
    status, damages = verify(run_id)
    model.mkdir()
    assert status == 2
    assert {MODEL, "model/MLmodel"} <= set(damages)
    assert set(damages.values()) == {"it does not exist"}


def test_contracts_rewritten_to_fit_a_damage_are_found(run, verify):
    """A file that is changed along with its manifest entry is caught by the digest on the run itself."""
    run_id, artifacts, _ = run
    flip(artifacts / "pictures" / "comparison.png")
    contracts = json.loads((artifacts / "contracts.json").read_text())
    entry = manifest_entry(artifacts / "pictures" / "comparison.png")
    contracts["seals"]["pictures/comparison.png"] = entry.model_dump(mode="json")
    (artifacts / "contracts.json").write_text(json.dumps(contracts))
    assert verify(run_id) == (2, {"contracts.json": "it was changed after the run had ended"})


def test_a_folder_is_verified_like_a_run(tmp_path, verify):
    write_volume(tmp_path / "restored.nii.gz", np.ones(GRID.shape, np.float32), GRID)
    entry = manifest_entry(tmp_path / "restored.nii.gz", volume_contract(GRID, "float32"))
    write_contracts(tmp_path, {"restored.nii.gz": entry})
    # The key of version 0.1.0.
    assert json.loads((tmp_path / "contracts.json").read_text())["seals"]["restored.nii.gz"]["contract"]["times"] == 1
    assert verify(tmp_path) == (0, {})
    at(42, struct.pack("<h", 5))(tmp_path / "restored.nii.gz")
    status, damages = verify(tmp_path)
    assert status == 2
    assert "i must be 6, received 5" in damages["restored.nii.gz"]


@pytest.fixture
def folder(tmp_path):
    """A folder with contracts of one file, next to a file that is not in it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (folder / "page.txt", tmp_path / "secret.txt"):
        path.write_text("text")
    write_contracts(folder, {"page.txt": manifest_entry(folder / "page.txt")})
    return folder


@pytest.mark.parametrize("path", ["../secret.txt", "page/../../secret.txt", "{}/secret.txt"])
def test_a_path_that_leads_out_of_the_folder_is_not_followed(folder, verify, path):
    path = path.format(folder.parent)
    write_contracts(folder, {path: manifest_entry(folder.parent / "secret.txt")})
    assert verify(folder) == (2, {path: "its path leads out of the folder"})


@pytest.mark.parametrize("name", ["page.txt", "contracts.json"])
@pytest.mark.parametrize("kind", ["pipe", "dangling link", "link to itself"])
def test_what_is_no_file_is_reported_and_not_waited_for(folder, verify, name, kind):
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to({"dangling link": "nowhere", "link to itself": name}[kind])
    assert verify(folder) == (2, {name: "it is no file, or a link to none"})


def test_a_file_that_cannot_be_read_is_reported(folder, verify):
    entry = manifest_entry(folder / "page.txt").model_copy(update={"size": 0})
    write_contracts(folder, {"page.txt": entry})
    (folder / "page.txt").unlink()
    (folder / "page.txt").symlink_to("/proc/self/mem")  # of size 0, and reading it is an error of the device
    assert verify(folder) == (2, {"page.txt": "it cannot be read: Input/output error"})


@pytest.mark.parametrize("target", ["0123456789abcdef", "no/such/folder"])
def test_what_is_not_there_is_reported(store, target):
    with pytest.raises(ValueError, match=r"there is no such folder|Cannot find the run"):
        CliRunner().invoke(app, ["verify", target], catch_exceptions=False)
