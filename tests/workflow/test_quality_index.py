"""The table of QC pages: sorted by verdict, with outliers, and never in place of a file of other origin."""

import re

import numpy as np
import pytest

from configs.axes import FileShape
from tasks.volume.grid import Grid
from workflow.pages.index import Summary, read_summary, table_rows, write_index
from workflow.pages.quality import QualityCase, write_quality_page

GRID = Grid(FileShape(6, 7, 8), np.eye(4))


def page(path, warnings=()):
    path.parent.mkdir(exist_ok=True)
    volume = np.random.default_rng(0).random(GRID.shape, np.float32)
    write_quality_page(
        path,
        QualityCase("volume", GRID, GRID, volume, volume, FileShape(4, 4, 4), consistency=volume, warnings=warnings),
    )
    return path


def test_a_page_says_in_short_what_is_in_it(tmp_path):
    summary = read_summary(page(tmp_path / "a_quality.html", ["an odd <header>"]))
    assert summary is not None
    assert (summary.verdict, summary.voxels, summary.warnings) == ("fail", "6 × 7 × 8", 1)
    assert summary.measures["consistency with the input, RMS"] == pytest.approx(0.58, abs=0.05)


def test_failed_volumes_come_first_and_outliers_are_found():
    usual = [1.0, 1.1, 0.9, 1.05, 0.95, 9.0]
    summaries = {f"{number}.html": Summary("pass", "1", 0, {"noise": value}) for number, value in enumerate(usual)}
    summaries["2.html"] = Summary("fail", "1", 0, {"noise": 0.9})
    summaries["4.html"] = Summary("look", "1", 0, {"noise": 0.95})
    rows = table_rows(summaries)
    assert [row.page for row in rows] == ["2.html", "4.html", "0.html", "1.html", "3.html", "5.html"]
    assert [list(row.outliers) for row in rows] == [[], [], [], [], [], ["noise"]]
    # Of a few volumes, none is unusual; of equal ones neither.
    assert not any(row.outliers for row in table_rows(dict(list(summaries.items())[2:])))
    equal = {f"{number}.html": Summary("pass", "1", 0, {"noise": 0.0}) for number in range(6)}
    assert not any(row.outliers for row in table_rows(equal))


def test_the_table_links_the_pages_below_its_folder(tmp_path):
    pages = [page(tmp_path / "sub-1" / "a b_quality.html"), page(tmp_path / "c_quality.html", ["odd"])]
    foreign = tmp_path / "d_quality.html"
    foreign.write_text("<p>of another program")
    assert write_index(tmp_path, [*pages, foreign]) == tmp_path / "index.html"
    content = (tmp_path / "index.html").read_text()
    assert re.findall(r'href="([^"]+)"', content) == ["c_quality.html", "sub-1/a%20b_quality.html"]
    assert "6 × 7 × 8" in content
    assert not re.search(r"https?:|<script", content)
    # Again, after one more run.
    assert write_index(tmp_path, [*pages, page(tmp_path / "e_quality.html")])
    assert "3 volumes" in (tmp_path / "index.html").read_text()


def test_there_is_no_table_of_one_page_or_in_place_of_another_file(tmp_path):
    pages = [page(tmp_path / "a_quality.html"), page(tmp_path / "b_quality.html")]
    assert write_index(tmp_path, pages[:1]) is None
    (tmp_path / "index.html").write_text("<p>my lab")
    assert write_index(tmp_path, pages) is None
    assert (tmp_path / "index.html").read_text() == "<p>my lab"
