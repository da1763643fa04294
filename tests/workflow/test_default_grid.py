"""The target grid where none is asked for: by the geometry of the scan and what the model was trained for."""

import json
from dataclasses import replace

import numpy as np
import pytest

from configs.axes import FileShape
from configs.degradation import named_degradation
from configs.load import load_config
from configs.schema import Resources
from tasks.artifacts.model_card import make_card
from tasks.artifacts.shipped import ISOTROPIC, shipped_network
from tasks.artifacts.shipped import THICK as THICK_SLICES
from tasks.volume.grid import Grid, network_axes
from tasks.volume.nifti import open_volume, write_volume
from workflow.evaluate.evaluation import network_and_recipe
from workflow.upscale.plan import UpscaleRequest, chosen_network, default_scale, plan_volume

CARD = make_card(load_config("thick4x"), 1, 1, 1, None)
THICK = CARD.model_copy(update={"scale_range": ((2, 6), (1, 2), (1, 2))})
UNIVERSAL = CARD.model_copy(update={"degradation": named_degradation("iso2x"), "scale_range": ((2, 2), (2, 2), (2, 2))})


@pytest.mark.parametrize(
    ("spacing", "card", "scale"),
    [
        ((0.9, 0.9, 5), THICK, (1, 1, 5 / 0.9)),  # isotropic
        ((4, 1, 0.8), THICK, (4, 1, 1)),
        ((1, 1, 1), THICK, (1, 1, 4)),  # what the model was trained for first
        ((1, 1, 1.4), THICK, (1, 1, 4)),
        ((1, 1, 9), THICK, (1, 1, 4)),  # more than it was trained for
        ((1, 1, 5), UNIVERSAL, (2, 2, 2)),
        ((1, 1, 5), CARD, (1, 1, 4)),
    ],
)
def test_thick_slices_become_isotropic_where_the_model_was_trained_for_that(spacing, card, scale):
    grid = Grid(FileShape(20, 21, 22), np.diag([*spacing, 1.0]))
    assert default_scale(grid, network_axes(grid), card) == pytest.approx(scale)


@pytest.mark.parametrize(
    ("spacing", "options", "name"),
    [
        ((1, 1, 5), {}, THICK_SLICES),
        ((1, 1, 1), {}, ISOTROPIC),
        ((1, 1, 12), {}, ISOTROPIC),  # thicker than was trained for
        ((1, 1, 5), {"scale": (2, 2, 2)}, ISOTROPIC),
        ((1, 1, 1), {"scale": (1, 1, 3)}, THICK_SLICES),
        ((4, 1, 1), {"spacing": (1, 1, 1)}, THICK_SLICES),
        ((1, 1, 5), {"thick_network": None}, ISOTROPIC),
    ],
)
def test_the_geometry_and_the_scale_choose_between_the_shipped_networks(spacing, options, name):
    grid = Grid(FileShape(20, 21, 22), np.diag([*spacing, 1.0]))
    given = {"thick_network": shipped_network(thick=True), **options}
    request = UpscaleRequest([], None, shipped_network(), Resources(), **given)
    assert chosen_network(request, grid, network_axes(grid)).name == name


def planned_network(path, spacing, **options):
    """The network that restores a scan of that spacing in a file."""
    shape = FileShape(20, 21, 22)
    write_volume(path, np.zeros(shape, np.float32), Grid(shape, np.diag([*spacing, 1.0])))
    given = {"thick_network": shipped_network(thick=True), "experts": True, **options}
    request = UpscaleRequest([path], None, shipped_network(), Resources(), **given)
    return plan_volume(request, open_volume(path), path.with_name("out.nii")).network


@pytest.mark.parametrize(
    ("spacing", "options", "name"),
    [
        ((1, 1, 1), {"profile": "kspace"}, "kspace2x.keras"),
        ((1, 1, 1), {"profile": "kspace", "blur": (1, 1, 1)}, ISOTROPIC),
        ((1, 1, 1), {"profile": "box"}, "box2x.keras"),
        ((1, 1, 1), {"profile": "box", "blur": (0.8, 0.8, 0.8)}, "iso2x.keras"),
        ((1, 1, 1), {"profile": "box", "blur": (2, 2, 2)}, ISOTROPIC),
        ((1, 1, 1), {"profile": "box", "blur": (1, 1, 0)}, ISOTROPIC),
        ((1, 1, 1), {"profile": "gaussian"}, ISOTROPIC),
        ((1, 1, 1), {}, ISOTROPIC),
        ((1, 1, 1), {"slice_thickness": 1}, ISOTROPIC),
        ((1, 1, 1), {"profile": "box", "experts": False}, ISOTROPIC),
        ((1, 1, 4), {"profile": "box"}, "boxthick.keras"),
        ((1, 1, 4), {"slice_thickness": 4}, "boxthick.keras"),
        ((1, 1, 4), {"slice_thickness": 3}, THICK_SLICES),
        ((1, 1, 4), {"profile": "kspace"}, THICK_SLICES),
        ((1, 1, 4), {}, THICK_SLICES),
    ],
)
def test_a_known_acquisition_chooses_its_expert(spacing, options, name, tmp_path):
    assert planned_network(tmp_path / "scan.nii", spacing, **options).name == name


@pytest.mark.parametrize(("thickness", "name"), [(4, "boxthick.keras"), (3, THICK_SLICES)])
def test_the_sidecar_chooses_the_expert_for_thick_slices(thickness, name, tmp_path):
    (tmp_path / "scan.json").write_text(json.dumps({"SliceThickness": thickness}))
    assert planned_network(tmp_path / "scan.nii", (1, 1, 4)).name == name


def test_an_expert_restores_as_the_network_in_whose_place_it_is(tmp_path):
    ensemble = {"thick_network": replace(shipped_network(thick=True).flipped(), precision="bfloat16")}
    expert = planned_network(tmp_path / "scan.nii", (1, 1, 4), profile="box", **ensemble)
    assert (expert.name, expert.flips, expert.precision) == ("boxthick.keras", 8, "bfloat16")


@pytest.mark.parametrize(
    ("degradation", "name"),
    [
        ("kspace2x", "kspace2x.keras"),
        ("box2x", "box2x.keras"),
        ("iso2x", "iso2x.keras"),
        ("thick4x", "boxthick.keras"),
        ("thick4x_gap", THICK_SLICES),
    ],
)
def test_a_named_degradation_is_scored_with_its_expert(degradation, name):
    assert network_and_recipe(None, degradation)[0].name == name
