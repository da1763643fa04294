"""The QC page: one file that opens offline, with a verdict, and a viewer whose millimetres are those of the file."""

import base64
import gzip
import io
import re

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine
from PIL import Image
from scipy.ndimage import gaussian_filter

from configs.axes import FileShape
from tasks.volume.grid import Grid, covering_grid
from tasks.volume.intensity import Intensity
from tests.browser import browser
from workflow.pages import viewer
from workflow.pages.index import read_summary
from workflow.pages.quality import QualityCase, on_finer_grid, write_quality_page
from workflow.pages.verdict import Measure, gain_measure
from workflow.pages.viewer import Layer, niivue, shown_layers, views

RAS = Grid(FileShape(20, 24, 16), np.diag([1, 1, 1.5, 1]))
TURNED = np.array([[0.96, -0.25, 0.11], [0.27, 0.95, -0.14], [-0.07, 0.17, 0.98]])


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
        "consistency": np.full((10, 12, 8), 0.01, np.float32),
        "inferred": (anatomy - gaussian_filter(anatomy, 0.5)) / 2,
        "facts": {"acquisition": "k-space"},
        "warnings": ["the header <is> odd"],
    }
    return QualityCase(**(known | changes))


def pictures(content):
    return [Image.open(io.BytesIO(base64.b64decode(found))) for found in re.findall(r'png;base64,([^"]+)"', content)]


def summary_of(page):
    summary = read_summary(page)
    assert summary is not None
    return summary


def files_of(page):
    """The files of the layers as nibabel reads them, by layer and view."""
    found = re.findall(r'id="layer-(\d+)-(\d+)">([^<]+)<', page.read_text())
    return {
        (int(layer), int(view)): nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(content)))
        for layer, view, content in found
    }


@pytest.fixture(scope="module")
def page(anatomy, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "scan_sr_quality.html"
    write_quality_page(path, case(anatomy))
    return path


def test_the_page_escapes_what_it_shows_and_allows_no_request(page):
    content = page.read_text().replace(niivue(), "")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"[A-Za-z0-9+/=]{80,}", "", content))
    assert "default-src 'none'" in content
    for shown in ("a volume &lt;of&gt; somebody", "the header &lt;is&gt; odd", "20 × 24 × 16", "10 × 12 × 8"):
        assert shown in content


def test_layers_are_nifti_files_in_the_unit_and_frame_of_the_output(anatomy, tmp_path):
    grid = Grid(RAS.shape, np.vstack([np.c_[TURNED, [-12, 7, 30]], [0, 0, 0, 1]]))
    path = tmp_path / "quality.html"
    write_quality_page(path, case(anatomy, grid=grid, unit=Intensity(-1000.0, 1000.0)))
    files = files_of(path)
    assert set(files) == {(layer, 0) for layer in range(8)}
    restored, difference = files[1, 0], files[2, 0]
    np.testing.assert_allclose(restored.affine, grid.affine, atol=1e-5)
    np.testing.assert_allclose(restored.get_fdata(), anatomy * 2000 - 1000, atol=2000 * 1.25 / 255)
    np.testing.assert_allclose(difference.get_fdata(), 2000 * (anatomy - gaussian_filter(anatomy, 1)), atol=5)
    np.testing.assert_allclose(files[3, 0].get_fdata(), 1000 * (anatomy - gaussian_filter(anatomy, 0.5)), atol=5)
    assert restored.get_data_dtype() == np.uint8


def test_a_large_volume_is_shown_in_means_and_its_middle_as_it_is(anatomy, monkeypatch):
    """Both in their places: the world coordinate that a volume holds is what its shown voxels hold there."""
    monkeypatch.setattr(viewer, "MAX_VOXELS", 500)
    monkeypatch.setattr(viewer, "PART", 8)
    grid = Grid(RAS.shape, np.vstack([np.c_[TURNED * [1, 1, 3], [-12, 7, 30]], [0, 0, 0, 1]]))
    indices = np.moveaxis(np.indices(grid.shape), 0, 3).reshape(-1, 3).astype(float)
    world = grid.world(indices)[:, 0].reshape(grid.shape).astype(np.float32)
    low, high = float(world.min()), float(world.max())
    volume = (world - low) / (high - low)
    chosen = views(grid, anatomy)
    (layer,) = shown_layers([Layer("x", lambda view: view.of(volume))], chosen, Intensity(low, high))
    assert [view.factors for view in chosen] == [(4, 4, 1), (1, 1, 1)]
    assert chosen[0].grid.shape == (5, 6, 16)
    assert chosen[1].grid.shape == (8, 8, 8)
    for content in layer.files:
        shown = nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(content)))
        places = np.moveaxis(np.indices(shown.shape), 0, 3).reshape(-1, 3)
        expected = apply_affine(shown.affine, places)[:, 0].reshape(shown.shape)
        np.testing.assert_allclose(shown.get_fdata(), expected, atol=(high - low) * 1.25 / 255)


def picture(volume, grid):
    layer = Layer("marked", lambda view: view.of(volume), signed=True)
    (shown,) = shown_layers([layer], views(grid, volume), Intensity(0, 1))
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.picture))), int)


@pytest.fixture(scope="module")
def marked():
    """Above 0 at the right, anterior and superior, below 0 elsewhere."""
    volume = np.full(RAS.shape, -0.15, np.float32)
    volume[12:, 14:, 10:] = 0.15
    volume[12:, 14:, 8] = 0.15  # in the axial plane of the picture
    return volume


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, -1)])
def test_the_picture_is_upright_whatever_the_order_of_the_file(marked, order, flip):
    stored = marked.transpose(order)[tuple(slice(None, None, step) for step in flip)]
    affine = np.eye(4)
    affine[:3, :3] = np.diag([1, 1, 1.5])[:, list(order)] * flip
    grid = Grid(FileShape(stored.shape[0], stored.shape[1], stored.shape[2]), affine)
    assert (picture(stored, grid) == picture(marked, RAS)).all()


def test_the_picture_has_anterior_above_and_right_at_the_right_and_differences_in_colour(marked):
    axial = picture(marked, RAS)[:, : round(220 * 20 / 24)]
    red, blue = axial[..., 0] > axial[..., 2], axial[..., 2] > axial[..., 0]
    assert red[:80, 115:].all()
    assert blue[100:].all()
    assert blue[:, :105].all()


def test_empty_plots_and_missing_measures_are_left_out(anatomy, tmp_path):
    path = tmp_path / "quality.html"
    bare = case(anatomy, truth=None, consistency=None, inferred=None, borders=(), warnings=(), strides=(1, 1, 1))
    assert write_quality_page(path, bare) == ()
    summary = summary_of(path)
    assert (summary.verdict, summary.measures, summary.warnings) == ("pass", {}, 0)
    assert "No warnings." in path.read_text()
    # One voxel along an axis: no spectrum along it.
    flat = Grid(FileShape(20, 24, 1), np.eye(4))
    given = {"grid": flat, "input_grid": flat, "before": anatomy[..., :1], "restored": anatomy[..., :1]}
    write_quality_page(path, case(anatomy, **given, truth=None, consistency=None, inferred=None, borders=()))


def test_a_volume_out_of_the_range_of_intensities_gets_its_page(anatomy, tmp_path):
    write_quality_page(tmp_path / "quality.html", case(anatomy, restored=anatomy + 2))
    assert (tmp_path / "quality.html").stat().st_size > 0


def test_a_map_of_the_input_lies_on_the_voxels_that_its_own_came_from():
    """Also where the input covers more than the output: 21 fine voxels of 6 coarse ones of 4."""
    grid = Grid(FileShape(21, 20, 16), np.eye(4))
    coarse = Grid(FileShape(6, 5, 4), np.diag([4, 4, 4, 1]))
    consistency = np.zeros(coarse.shape, np.float32)
    consistency[4] = 0.15
    spread = on_finer_grid(consistency, coarse, grid)
    assert np.unique(np.nonzero(spread)[0]).tolist() == [16, 17, 18, 19]


def noisy(amplitude):
    anatomy = gaussian_filter((gaussian_filter(np.random.default_rng(0).normal(size=[64] * 3), 3) > 0).astype("f4"), 1)
    pattern = anatomy.copy()
    pattern[::4] += amplitude
    grid = Grid(FileShape(64, 64, 64), np.eye(4))
    given = {"before": anatomy, "truth": None, "consistency": None, "warnings": (), "strides": (4, 4, 4)}
    return case(pattern, grid=grid, borders=(), **given)


@pytest.mark.parametrize(("amplitude", "verdict"), [(0.0, "pass"), (0.05, "fail")])
def test_noise_of_the_stride_decides_the_verdict(tmp_path, amplitude, verdict):
    warnings = write_quality_page(tmp_path / "quality.html", noisy(amplitude))
    assert summary_of(tmp_path / "quality.html").verdict == verdict
    assert ["along i" in warning for warning in warnings] == ([True] if amplitude else [])


def test_a_measure_has_a_limit_to_look_and_one_to_reject():
    high = [Measure("noise", value, look=1, fail=2, remedy="").verdict for value in (0.5, 1.0, 1.5, 2.5, np.nan)]
    assert high == ["pass", "pass", "look", "fail", "fail"]
    assert [gain_measure(value, "cubic").verdict for value in (0.3, -0.1, -3)] == ["pass", "look", "fail"]
    assert gain_measure(1, "cubic").limits == "look below 0, fail below -0.5"


def test_warnings_ask_for_a_look(anatomy, tmp_path):
    write_quality_page(tmp_path / "quality.html", case(anatomy, borders=(), strides=(1, 1, 1), consistency=None))
    assert summary_of(tmp_path / "quality.html").verdict == "look"


ORIENTATIONS = {
    "RAS": np.diag([1, 1, 1.5]),
    "LPS": np.diag([-1, -1, 1.5]),
    "PIL": np.array([[0, 0, -1], [-1.5, 0, 0], [0, -1, 0]]),
    "oblique": TURNED @ np.diag([1, 1, 1.5]),
}


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_the_crosshair_has_the_millimetres_and_values_of_nibabel(tab, anatomy, tmp_path, name):
    affine = np.eye(4)
    affine[:3] = np.c_[ORIENTATIONS[name], [-31.25, 12.5, 40]]
    path, grid = tmp_path / "scan_sr_quality.html", Grid(RAS.shape, affine)
    consistency = {"input_grid": covering_grid(grid, FileShape(10, 12, 8))}
    write_quality_page(path, case(anatomy, grid=grid, unit=Intensity(0.0, 100.0), **consistency))
    nibabel.save(nibabel.Nifti1Image(100 * anatomy, affine), tmp_path / "output.nii")
    image = nibabel.load(tmp_path / "output.nii")

    tab.open(path)
    tab.run("opened")
    read = "[...['x', 'y', 'z', 'voxel', 'right-value', 'left-value'].map(name => element(name).value)]"
    for voxel in [(0, 0, 0), (3, 17, 5), (19, 2, 15), (10, 12, 8)]:
        place = apply_affine(image.affine, voxel)
        tab.run(f"moveTo({place.tolist()})")
        shown = tab.run(read)
        np.testing.assert_allclose([float(one) for one in shown[:3]], place, atol=2e-3)
        assert [float(one) for one in shown[3].split(",")] == pytest.approx(voxel)
        assert float(shown[4]) == pytest.approx(image.dataobj[voxel], abs=0.4)
    # By the mouse too: the crosshair stays on the middle of a voxel, and both layers follow.
    box = tab.run("(box => [box.left, box.top, box.width, box.height])(element('over').getBoundingClientRect())")
    tab.click(box[0] + box[2] * 0.55, box[1] + box[3] * 0.47)
    *place, voxel, value, _ = tab.run(read)
    i, j, k = (round(float(one)) for one in voxel.split(","))
    assert (i, j, k) != (10, 12, 8)
    np.testing.assert_allclose([float(one) for one in place], image.affine[:3] @ (i, j, k, 1), atol=2e-3)
    assert float(value) == pytest.approx(image.dataobj[i, j, k], abs=0.4)
    places = tab.run("sides.map(({ viewer }) => Array.from(viewer.frac2mm(viewer.scene.crosshairPos, 0, true)))")
    np.testing.assert_allclose(places[0], places[1], atol=1e-4)
    assert tab.errors == []
    assert [one for one in tab.requests if not one.startswith(("data:", path.as_uri()))] == []


@pytest.mark.slow
def test_the_crosshair_keeps_its_place_between_means_and_full_resolution(tab, anatomy, tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "MAX_VOXELS", 500)
    monkeypatch.setattr(viewer, "PART", 8)
    affine = np.vstack([np.c_[TURNED, [-31.25, 12.5, 40]], [0, 0, 0, 1]])
    path, grid = tmp_path / "quality.html", Grid(RAS.shape, affine)
    write_quality_page(path, case(anatomy, grid=grid, input_grid=covering_grid(grid, FileShape(10, 12, 8))))
    tab.open(path)
    tab.run("opened")
    for part, voxel in enumerate([(10, 13, 7), (9, 11, 6)]):  # the middle of a block, then a voxel
        tab.run(f"element('view').value = {part}; Promise.all(sides.map(show))")
        tab.run(f"moveTo({apply_affine(affine, voxel).tolist()})")
        assert tab.run("millimetres()") == pytest.approx(apply_affine(affine, voxel), abs=2e-3)
    assert float(tab.run("element('right-value').value")) == pytest.approx(anatomy[9, 11, 6], abs=0.004)
    assert tab.errors == []


ACT = """
(async () => {
  const set = (name, value, kind) => {
    const control = element(name);
    if (control.type === "checkbox") control.checked = value; else control.value = value;
    control.dispatchEvent(new Event(kind));
  };
  await opened;
  const [under, over] = sides, found = { title: element("title").textContent };
  set("swipe", 80, "input"); set("opacity", 40, "input");
  found.cut = getComputedStyle(element("over").parentElement).clipPath;
  found.opacity = getComputedStyle(element("over").parentElement).opacity;
  set("low", 10, "change"); set("high", 60, "change");
  found.window = [over.viewer.volumes[0].cal_min, over.viewer.volumes[0].cal_max, element("right-high").value];
  set("zoom", 3, "input");
  found.zoom = sides.map(side => side.viewer.scene.pan2Dxyzmm[3]);
  set("radiological", true, "change");
  found.radiological = sides.map(side => side.viewer.opts.isRadiologicalConvention);
  under.select.value = 2;
  await show(under);
  found.difference = [element("left-scale").className, under.viewer.volumes[0].colormap];
  const canvas = element("over"), box = canvas.getBoundingClientRect(), before = millimetres();
  const [clientX, clientY] = [box.left + box.width * .15, box.top + box.height / 2];
  canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 100, clientX, clientY, bubbles: true }));
  found.scrolled = millimetres().map((place, axis) => Math.abs(place - before[axis]));
  set("x", 5, "change"); set("y", 7, "change"); set("z", 9, "change");
  found.place = millimetres();
  return found;
})()
"""


@pytest.mark.slow
def test_the_controls_work_in_a_browser(tab, page, anatomy):
    tab.open(page)
    found = tab.run(ACT)
    assert found["title"] == "a volume <of> somebody: scan_sr_quality.html"
    assert "80%" in found["cut"]
    assert found["opacity"] == "0.4"
    assert found["window"] == [10, 60, "60"]
    assert found["zoom"] == [3, 3]
    assert found["radiological"] == [True, True]
    assert found["difference"] == ["signed", "difference"]
    assert found["scrolled"] == pytest.approx([0, 0, 1.5])  # an axial slice
    assert found["place"] == pytest.approx([5, 7, 9])
    assert len(np.unique(np.asarray(Image.open(io.BytesIO(tab.picture())).convert("L")))) > 50
    assert tab.errors == []


@pytest.mark.slow
def test_without_webgl_the_page_shows_pictures_and_says_why(page, tmp_path):
    with browser(tmp_path / "profile", "--disable-gpu", "--disable-3d-apis") as tab:
        tab.open(page)
        tab.run("opened")
        assert "no WebGL 2" in tab.run("document.querySelector('.state').textContent")
        assert tab.run("document.querySelector('.poster img').naturalWidth") > 100
        assert tab.errors == []
