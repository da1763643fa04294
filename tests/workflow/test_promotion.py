"""Registered models: aliases, and a challenger that has to be better than the champion."""

import keras
import numpy as np
import pytest
from mlflow import MlflowClient
from rich.console import Console
from scipy.ndimage import gaussian_filter

import workflow.evaluate.promotion as promotion
import workflow.tracking as tracking
from configs.axes import NetworkShape
from configs.degradation import named_degradation
from configs.errors import ContractError, InputError
from configs.load import load_config
from configs.schema import Resources
from models.network.restorer import build_restorer
from models.stages.stage import Stage
from tasks.artifacts.model_card import add_card, make_card
from tasks.scoring.protocol import Score
from tasks.volume.grid import Grid
from tasks.volume.nifti import write_volume
from workflow.tracking.registry import aliased_version

NAN, INFINITE = float("nan"), float("inf")


def scores(champion, challenger, measure=None):
    same = {"champion": Score(0.9, 0.8, 0.8, 0.8), "challenger": Score(0.9, 0.8, 0.8, 0.8)}
    found = {"champion": Score(champion, 29, 28, 27), "challenger": Score(challenger, 29, 28, 27)}
    return promotion.ReferenceScores(**({"psnr": same, "ssim": same} | {measure or "psnr": found}))


@pytest.mark.parametrize(
    ("given", "promoted"),
    [
        ([scores(30, 30.2)], True),
        ([scores(30, 30)], False),
        ([scores(30, 30.004)], False),
        ([scores(0.92, 0.921, "ssim")], True),
        ([scores(30, 29.9)], False),
        ([scores(30, 31), scores(30, 29.2)], True),
        ([scores(30, 31), scores(30, 28.8)], False),
        ([scores(0.92, 0.91, "ssim")], False),
        ([scores(30, 40), scores(30, NAN)], False),
        ([scores(30, INFINITE)], False),
        ([scores(30, 40, "psnr"), scores(0.9, NAN, "ssim")], False),
        ([scores(NAN, 1)], True),
        ([scores(INFINITE, 30)], True),
        ([scores(NAN, NAN)], False),
    ],
)
def test_the_challenger_has_to_be_better_and_finite(given, promoted):
    decision, reason = promotion.decide(given)
    assert decision is promoted
    assert f"on {len(given)} reference(s)" in reason


def trained(folder, detail, name="heads", degradation=None):
    """A restorer that adds noise of a strength: the weights of its last layer."""
    keras.utils.set_random_seed(0)
    network = build_restorer((Stage(2, (4, 4, 4), (2, 2, 2)), Stage(1, (3, 4, 4), (1, 2, 2))), latent_filters=2)
    last = network.get_layer("stage_1")
    last.set_weights([np.full(weights.shape, detail, np.float32) for weights in last.get_weights()])
    path = folder / f"{detail}.keras"
    network.save(path)
    if degradation is not None:
        add_card(path, make_card(load_config("demo", [f"degradation={degradation}"]), 0, 0, 0, None))
    with tracking.recorded_run("trained", f"{detail}") as recorder:
        (uri,) = tracking.logged_model(recorder.address, path, [NetworkShape(2, 4, 4)])
        return path, tracking.register_model(recorder.address, uri, name)


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folder, blobs = (
        tmp_path_factory.mktemp("references"),
        gaussian_filter(np.random.default_rng(0).normal(size=(24, 32, 28)), 2),
    )
    for number, level in enumerate((0, 0.01, 0.02)):
        voxels = (blobs > level) * 90 + 10.5
        write_volume(folder / f"{number}.nii.gz", voxels.astype(np.float32), Grid(blobs.shape, np.eye(4)))
    return sorted(folder.iterdir())


def promote(references, name="heads", degradation=None, **options):
    resources = Resources(workers=1)
    return promotion.promote(name, references, degradation, resources, "promotions", Console(quiet=True), **options)


@pytest.mark.usefixtures("ray_cluster")
def test_the_alias_moves_only_to_what_is_better(store, tmp_path, references):
    client = MlflowClient(tracking.tracking_uri())
    first, champion = trained(tmp_path, 0.1)
    assert (champion.version, champion.alias) == ("1", "champion")
    with pytest.raises(InputError, match="Cannot find the challenger of heads"):
        promote(references)

    _, challenger = trained(tmp_path, 0.5)
    assert (challenger.version, challenger.alias) == ("2", "challenger")
    for few in (references[:2], [references[0]] * 3):
        with pytest.raises(InputError, match=r"3 different references are needed, received .* with --min-references"):
            promote(few)
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(references[0].read_bytes()[:-500])
    with pytest.raises(InputError, match="Cannot read cut"):  # however many others there are
        promote([cut, *references])
    assert aliased_version("heads", "challenger").version == "2"
    done = promote(references[:1], min_references=1)
    (found,) = done.scores
    assert not done.promoted
    assert found.psnr["challenger"].restored < found.psnr["champion"].restored
    assert found.psnr["challenger"].cubic == found.psnr["champion"].cubic
    assert aliased_version("heads", "champion").version == "1"
    assert tracking.resolve_model("models:/heads@champion").read_bytes() == first.read_bytes()
    assert client.get_model_version("heads", "2").description == f"not promoted: {done.reason}"
    run = client.get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["psnr/challenger"] == found.psnr["challenger"].restored
    assert run.data.tags["mlflow.note.content"] == f"Challenger 2 against champion 1: {done.reason}"
    assert len(run.inputs.dataset_inputs) == 1

    better, _ = trained(tmp_path, 0.0)
    done = promote(references[:1], min_references=1)
    assert done.promoted
    assert aliased_version("heads", "champion").version == "3"
    assert tracking.resolve_model("models:/heads@champion").read_bytes() == better.read_bytes()
    assert tracking.resolve_model("models:/heads/1").read_bytes() == first.read_bytes()
    assert client.get_model_version("heads", "3").description == f"promoted: {done.reason}"
    assert client.get_model_version("heads", "3").tags["promotion"] == "promoted"
    with pytest.raises(InputError, match="Cannot find the challenger"):
        aliased_version("heads", "challenger")


@pytest.mark.usefixtures("ray_cluster")
def test_a_champion_that_is_not_finite_does_not_stay(store, tmp_path, references, monkeypatch):
    with monkeypatch.context() as patched:  # as a version that checked nothing has registered it
        patched.setattr("tasks.artifacts.network_file._require_finite", lambda *_: None)
        _, champion = trained(tmp_path, NAN, "spoiled")
    assert champion.alias == "champion"
    with pytest.raises(ContractError, match="weights are NaN or infinite"):
        trained(tmp_path, INFINITE, "spoiled")
    _, challenger = trained(tmp_path, 0.1, "spoiled")
    assert challenger.alias == "challenger"
    done = promote(references[:1], "spoiled", min_references=1)
    assert done.promoted
    assert done.reason.endswith("the scores of the champion are not finite")
    assert aliased_version("spoiled", "champion").version == challenger.version


def test_models_of_other_degradations_are_not_compared(store, tmp_path, references):
    trained(tmp_path, 0.1, "mixed", "thick4x")
    trained(tmp_path, 0.2, "mixed", "iso2x")
    for degradation in (None, named_degradation("thick4x"), named_degradation("iso2x"), named_degradation("box2x")):
        with pytest.raises(InputError, match="do not compare the models of mixed, one of which was trained for"):
            promote(references, "mixed", degradation)
