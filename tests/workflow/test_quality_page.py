"""The QC page: upright whatever the order of the file, alone in one file, and alive in a browser."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from configs.axes import FileShape
from tasks.volume.grid import Grid, covering_grid
from tests.browser import acted_on, chromium
from workflow.pages.quality import QualityCase, on_finer_grid, write_quality_page
from workflow.pages.slices import plane_sprites

RAS = Grid(FileShape(20, 24, 16), np.diag([1, 1, 1.5, 1]))


@pytest.fixture(scope="module")
def anatomy():
    blobs = gaussian_filter(np.random.default_rng(0).normal(size=RAS.shape), 2)
    return (blobs - blobs.min()).astype(np.float32) / np.float32(np.ptp(blobs))


def case(anatomy, **changes):
    known = {
        "title": "a volume <of> somebody",
        "input_grid": covering_grid(RAS, FileShape(10, 12, 8)),
        "grid": RAS,
        "before": gaussian_filter(anatomy, 1),
        "restored": anatomy,
        "strides": (4, 4, 2),
        "borders": [(1, 10)],
        "truth": np.clip(anatomy + 0.01, 0, None),
        "consistency": np.full((10, 12, 8), 0.02, np.float32),
        "facts": {"degradation": "iso2x"},
        "warnings": ["the header <is> odd"],
    }
    return QualityCase(**(known | changes))


@pytest.fixture(scope="module")
def page(anatomy, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "quality.html"
    write_quality_page(path, case(anatomy))
    return path


def decoded(sprite):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(sprite))))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, -1)])
def test_every_order_of_the_file_shows_the_same_upright_volume(anatomy, order, flip):
    upright = plane_sprites(RAS, {"restored": anatomy}, frozenset())
    stored = anatomy.transpose(order)[tuple(slice(None, None, step) for step in flip)]
    affine = np.eye(4)
    affine[:3, :3] = np.diag([1, 1, 1.5])[:, list(order)] * flip
    grid = Grid(FileShape(stored.shape[0], stored.shape[1], stored.shape[2]), affine)
    for plane, expected in zip(plane_sprites(grid, {"restored": stored}, frozenset()), upright, strict=True):
        assert plane == expected


def test_an_axial_slice_has_anterior_above_and_right_at_the_right(anatomy):
    marked = anatomy * 0.5
    marked[16:, 20:] = 1  # right and anterior
    axial = plane_sprites(RAS, {"restored": marked}, frozenset())[0]
    assert (axial.name, axial.sides, axial.width, axial.height) == ("axial", "LRAP", 20, 24)
    first = decoded(axial.sprites["restored"])[:24]
    assert (first[:4, 16:] == 255).all()
    assert (first[4:] < 255).all()
    assert (first[:, :16] < 255).all()


def test_differences_are_blue_below_and_red_above(anatomy):
    difference = np.zeros_like(anatomy)
    difference[:10] = -0.15
    difference[10:] = 0.15
    axial = plane_sprites(RAS, {"restored": anatomy, "error": difference}, frozenset({"error"}))[0]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(axial.sprites["error"]))).convert("RGB"), int)
    assert (shown[:, :10, 2] > shown[:, :10, 0]).all()
    assert (shown[:, 10:, 0] > shown[:, 10:, 2]).all()


def test_a_volume_out_of_the_range_of_intensities_gets_its_page(anatomy, tmp_path):
    write_quality_page(tmp_path / "quality.html", case(anatomy, restored=anatomy + 2))
    assert (tmp_path / "quality.html").stat().st_size > 0


def test_the_page_stands_alone_and_escapes_what_it_shows(page):
    content = page.read_text()
    without_pictures = re.sub(r"[A-Za-z0-9+/=]{80,}", "", content)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", without_pictures)
    assert "a volume &lt;of&gt; somebody" in content
    assert "the header &lt;is&gt; odd" in content
    assert "20 × 24 × 16" in content
    assert "10 × 12 × 8" in content


def test_without_truth_and_shards_there_is_a_page_too(anatomy, tmp_path):
    bare = case(anatomy, truth=None, consistency=None, borders=(), warnings=(), strides=(1, 1, 1))
    assert write_quality_page(tmp_path / "quality.html", bare) == ()
    assert "No warnings." in (tmp_path / "quality.html").read_text()


def test_a_map_of_the_input_lies_on_the_voxels_that_its_own_came_from():
    """Also where the input covers more than the output: 21 fine voxels of 6 coarse ones of 4."""
    grid = Grid(FileShape(21, 20, 16), np.eye(4))
    coarse = Grid(FileShape(6, 5, 4), np.diag([4, 4, 4, 1]))
    consistency = np.zeros(coarse.shape, np.float32)
    consistency[4] = 0.15
    spread = on_finer_grid(consistency, coarse, grid)
    assert np.unique(np.nonzero(spread)[0]).tolist() == [16, 17, 18, 19]


def test_noise_of_the_stride_is_reported_on_the_page(tmp_path):
    anatomy = gaussian_filter(np.random.default_rng(0).normal(size=(64, 64, 64)), 3) > 0
    noisy = gaussian_filter(anatomy.astype(np.float32), 1)
    noisy[::4] += 0.05
    grid = Grid(FileShape(64, 64, 64), np.eye(4))
    odd = case(noisy, grid=grid, before=gaussian_filter(noisy, 1), truth=None, consistency=None, strides=(4, 4, 4))
    (warning,) = (line for line in write_quality_page(tmp_path / "quality.html", odd) if "periodic" in line)
    assert "along i" in warning


ACT = """
const section = document.querySelector('.plane'), slice = section.querySelector('.slice');
const set = (control, value) => { control.value = value; control.dispatchEvent(new Event('input')); };
const shown = kind => {
  const canvas = section.querySelector(kind), copy = canvas.cloneNode().getContext('2d', { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  return Array.from(copy.getImageData(0, 0, canvas.width, canvas.height).data)
    .filter((_, index) => index % 4 === 0);
};
const found = {};
set(slice, 0); found.first = shown('.over'); found.label = section.querySelector('output').value;
set(slice, 2); found.third = shown('.over');
set(document.getElementById('left'), 'truth'); found.truth = shown('.under');
set(document.getElementById('swipe'), 80); found.clip = section.querySelector('.over').style.clipPath;
const stack = section.querySelector('.stack'), box = stack.getBoundingClientRect();
stack.dispatchEvent(new PointerEvent('pointerdown', { buttons: 1, clientX: box.left + box.width / 4, bubbles: true }));
found.dragged = document.getElementById('swipe').value;
found.bar = section.querySelector('.bar').style.left;
found.images = sprites.flatMap(Object.values).every(image => image.naturalWidth > 0);
return found;
"""


@pytest.mark.slow
def test_slider_and_swipe_work_in_a_browser(page, anatomy, tmp_path):
    found = acted_on(page, ACT, tmp_path)
    axial = plane_sprites(RAS, {"restored": anatomy, "truth": np.clip(anatomy + 0.01, 0, None)}, frozenset())[0]
    sprite = decoded(axial.sprites["restored"])
    places = len(axial.places)
    assert len(sprite) == places * 24
    assert found["first"] == sprite[:24].ravel().tolist()
    assert found["third"] == sprite[48:72].ravel().tolist()
    assert found["truth"] == decoded(axial.sprites["truth"])[48:72].ravel().tolist()
    assert found["label"] == f"{axial.places[0]:.0f} mm"
    assert "80%" in found["clip"]
    assert (found["dragged"], found["bar"], found["images"]) == ("25", "25%", True)


@pytest.mark.slow
def test_the_page_is_drawn_without_a_network(page, tmp_path):
    picture = tmp_path / "page.png"
    chromium("--host-resolver-rules=MAP * ~NOTFOUND", f"--screenshot={picture}", page.as_uri())
    assert len(np.unique(np.asarray(Image.open(picture).convert("L")))) > 50
