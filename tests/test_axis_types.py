"""Shapes along file axes and network axes: the type checker refuses one where the other is meant."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GIVEN = """
from configs.axes import FileShape, NetworkShape
from models.network.cost import Cost
from tasks.sharding.plan import plan_shards
from tasks.volume.grid import Grid, NetworkAxes, covering_grid

def use(grid: Grid, axes: NetworkAxes, cost: Cost, fine: NetworkShape) -> object:
    return """


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("covering_grid(grid, axes.file_shape(fine))", "covering_grid(grid, fine)"),
        ("plan_shards(axes.network_shape(grid.shape), cost, 9)", "plan_shards(grid.shape, cost, 9)"),
        ("axes.network_shape(axes.file_shape(fine))", "axes.network_shape(fine)"),
        ("Grid(FileShape(*fine), grid.affine)", "Grid((1, 2, 3), grid.affine)"),
        ("cost.peak_bytes(fine)", "cost.peak_bytes(axes.file_shape(fine))"),
    ],
)
def test_a_shape_along_the_other_axes_is_a_type_error(right, wrong, tmp_path):
    lines = GIVEN.count("\n") + 1
    for number, expression in enumerate((right, wrong)):
        (tmp_path / f"snippet_{number}.py").write_text(GIVEN + expression + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", str(tmp_path / "snippet_0.py"), str(tmp_path / "snippet_1.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"snippet_1.py:{lines}: error: Argument" in done.stdout
    assert "has incompatible type" in done.stdout
    assert "Found 1 error in 1 file (checked 2 source files)" in done.stdout
