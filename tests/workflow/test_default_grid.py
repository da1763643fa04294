"""The target grid where none is asked for: by the geometry of the scan and what the model was trained for."""

import numpy as np
import pytest

from configs.axes import FileShape
from configs.degradation import named_degradation
from configs.load import load_config
from configs.schema import Resources
from tasks.artifacts.model_card import make_card
from tasks.artifacts.shipped import ISOTROPIC, shipped_network
from tasks.artifacts.shipped import THICK as THICK_SLICES
from tasks.imaging.acquisition import known_at_2x
from tasks.volume.grid import Grid, network_axes
from workflow.evaluate.evaluation import network_and_recipe
from workflow.upscale.plan import UpscaleRequest, chosen_network, default_scale
from workflow.upscale.run import saved_network

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


@pytest.mark.parametrize(
    ("profile", "blur", "name"),
    [
        ("kspace", None, "kspace2x.keras"),
        ("kspace", (1, 1, 1), ISOTROPIC),
        ("box", None, "box2x.keras"),
        ("box", (0.8, 0.8, 0.8), "iso2x.keras"),
        ("box", (2, 2, 2), ISOTROPIC),
        ("box", (1, 1, 0), ISOTROPIC),
        ("gaussian", None, ISOTROPIC),
    ],
)
def test_a_known_acquisition_chooses_its_expert(profile, blur, name):
    assert saved_network(None, known_at_2x(profile, blur)).name == name


@pytest.mark.parametrize(
    ("degradation", "name"),
    [("kspace2x", "kspace2x.keras"), ("box2x", "box2x.keras"), ("iso2x", "iso2x.keras"), ("thick4x", THICK_SLICES)],
)
def test_a_named_degradation_is_scored_with_its_expert(degradation, name):
    assert network_and_recipe(None, degradation)[0].name == name
