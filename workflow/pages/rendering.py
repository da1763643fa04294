"""Rendering of HTML pages, each a single file that opens offline, and of figures without a display."""

import io
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Environment(
    loader=PackageLoader("workflow"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)


def render_page(template: str, **values: object) -> str:
    """Fill a template of `workflow/templates`; the values are escaped."""
    return TEMPLATES.get_template(template).render(values)


def new_figure(**options: Any) -> "Figure":  # noqa: ANN401 - as Matplotlib takes them
    """Make a figure that is drawn without a display."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - half a second, not spent before a page is drawn

    return Figure(**options)


def png(figure: "Figure") -> bytes:
    """Draw a figure as PNG, and clear it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - as above

    out = io.BytesIO()
    # The same bytes as of `Figure.savefig`, which draws a figure with an automatic layout twice.
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(out)
    # A figure and its canvas refer to each other: their pixels would stay until a full collection of garbage.
    figure.clear()
    del canvas.renderer
    return out.getvalue()
