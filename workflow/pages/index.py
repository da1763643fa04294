"""The table of all QC pages in a folder, sorted by verdict, with outliers: one HTML file that opens offline."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from tasks.files.atomic import replacing
from workflow.pages.rendering import render_page
from workflow.pages.verdict import ORDER, Verdict

INDEX = "index.html"
SUMMARY, TABLE = "voxlift-qc", "voxlift-qc-table"  # names of the elements <meta> by which pages and table are known
HEAD_BYTES = 1 << 16  # of a page: its summary is there
MIN_VOLUMES = 5  # from which a median says what is usual
OUTLIER = 3.5  # robust standard deviations, after Iglewicz and Hoaglin
LEAST_SPREAD = 0.01  # of the median: below it nothing differs
ROBUST = 1.4826  # standard deviation over median absolute deviation, of a normal distribution


@dataclass(frozen=True)
class Summary:
    """Content of a QC page in short, as the page itself carries it.

    Args:
        verdict: On the volume.
        voxels: Of the output.
        warnings: How many.
        measures: By name.
    """

    verdict: Verdict
    voxels: str
    warnings: int
    measures: Mapping[str, float]

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Row:
    """One page of the table.

    Args:
        page: Its path from the table, with `/`.
        summary: What it says.
        outliers: Distances from the median by measure, in robust standard deviations, where they are large.
    """

    page: str
    summary: Summary
    outliers: Mapping[str, float]


def write_index(folder: Path, pages: Iterable[Path]) -> Path | None:
    """Write a table of QC pages, if there are several; returns its path.

    An `index.html` of other origin stays as it is.

    Args:
        folder: Receives the table.
        pages: In it or below. They themselves say what is in them, so they may be of earlier runs.
    """
    path = folder / INDEX
    rows = table_rows({page.relative_to(folder).as_posix(): one for page in pages if (one := read_summary(page))})
    if len(rows) < 2 or (path.exists() and not _meta(path, TABLE)):
        return None
    measures = sorted({name for row in rows for name in row.summary.measures})
    with replacing(path, durable=False) as partial:
        partial.write_text(render_page("index.html", rows=rows, measures=measures, table=TABLE), encoding="utf-8")
    return path


def table_rows(summaries: Mapping[str, Summary]) -> list[Row]:
    """Find outliers and sort: failed volumes first, then by name.

    Args:
        summaries: By the path of the page.
    """
    columns: dict[str, list[float]] = {}
    for summary in summaries.values():
        for name, value in summary.measures.items():
            columns.setdefault(name, []).append(value)
    rows = [
        Row(page, one, {name: far for name, value in one.measures.items() if (far := _distance(value, columns[name]))})
        for page, one in summaries.items()
    ]
    return sorted(rows, key=lambda row: (-ORDER[row.summary.verdict], row.page))


def read_summary(page: Path) -> Summary | None:
    """Read what a QC page says in short; None for any other file."""
    try:
        return Summary(**json.loads(_meta(page, SUMMARY)))
    except (ValueError, TypeError):
        return None


def _distance(value: float, column: Sequence[float]) -> float:
    """Return the distance from the median in robust standard deviations; 0 where it is small or unknown."""
    if len(column) < MIN_VOLUMES:
        return 0.0
    median = float(np.median(column))
    spread = max(ROBUST * float(np.median(np.abs(np.subtract(column, median)))), LEAST_SPREAD * abs(median))
    distance = (value - median) / spread if spread else 0.0
    return distance if abs(distance) > OUTLIER else 0.0


def _meta(page: Path, name: str) -> str:
    """Return the content of an element <meta> in the head of a page; empty if there is none."""
    with page.open("rb") as file:
        head = file.read(HEAD_BYTES).decode("utf-8", "ignore")
    parser = _Meta()
    parser.feed(head)
    return parser.found.get(name, "")


class _Meta(HTMLParser):
    """Collects the elements <meta> of a page by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the content of an element <meta>."""
        known = dict(attrs)
        if tag == "meta" and known.get("name"):
            self.found[str(known["name"])] = known.get("content") or ""
