"""Processes that draw the patches of a training."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from configs.errors import RunError
from tasks.machine.child import start_child
from tasks.training import drawing
from tasks.training.blocks import PatchSource, TrainingVolume
from tasks.training.drawing import PatchProcesses
from tests.processes import alive, end, until
from tests.tasks.small_training import small_job

ROOT = Path(__file__).parents[2]
STEPS = 70  # of two patches: each lane changes its block twice


@pytest.fixture
def job(tmp_path):
    mixture = "data.mixture={volumes: 2, tissues: 1, shapes: 1}"
    return small_job(tmp_path, f"training.steps={STEPS}", mixture, "augmentation.acquisitions=[box2x, thick4x]")


@pytest.fixture
def children():
    """Returns the processes below this one that it has started since."""
    before = set(psutil.Process().children())
    return lambda: set(psutil.Process().children()) - before


def require_same(batch, source, step):
    """Fail unless a batch of two holds the patches that a source of this process draws."""
    for place, patch in enumerate(map(source.draw, (2 * step, 2 * step + 1))):
        np.testing.assert_array_equal(batch.resampled[place], patch.resampled)
        np.testing.assert_array_equal(batch.fine[place], patch.fine)
        numbers = batch.share[place], batch.number[place], batch.damping[place]
        assert numbers == (patch.share, patch.number, np.float32(patch.damping))


@pytest.mark.parametrize(
    ("processes", "first"),
    [(3, 0), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 0), (2, 31), (4, 0), (7, 5)))],
)
def test_processes_draw_the_patches_of_one_whatever_their_number(job, children, processes, first):
    source = PatchSource(job.volumes, job.config)
    with PatchProcesses(job.volumes, job.config, processes, first) as drawn:
        for step in range(first, STEPS):
            require_same(drawn.next_batch(), source, step)
            assert step != first or len(children()) == processes
    assert not children()


def test_a_process_that_dies_is_replaced_by_one_that_draws_the_same(job, children):
    source = PatchSource(job.volumes, job.config)
    with PatchProcesses(job.volumes, job.config, 1) as drawn:
        require_same(drawn.next_batch(), source, 0)
        (process,) = children()
        process.kill()
        for step in range(1, STEPS):  # more than were in the memory
            require_same(drawn.next_batch(), source, step)


def test_processes_that_die_again_and_again_are_an_error(job, monkeypatch):
    monkeypatch.setattr(drawing, "start_child", lambda _, *others: start_child("import os; os._exit(7)", *others))
    with (
        PatchProcesses(job.volumes, job.config, 1) as drawn,
        pytest.raises(RunError, match="Cannot draw patch 0: its process has died, with status 7, and 3 before it"),
    ):
        drawn.next_batch()


def test_an_error_of_a_process_is_that_of_the_training(job):
    nowhere = TrainingVolume(job.volumes[0].fine, np.array([], np.int64))
    with pytest.raises(ValueError, match="high <= 0") as expected:
        list(map(PatchSource([nowhere], job.config).draw, range(STEPS)))
    with (
        PatchProcesses([nowhere], job.config, 1) as drawn,
        pytest.raises(ValueError, match="high <= 0") as raised,
    ):
        while True:
            drawn.next_batch()
    assert str(raised.value) == str(expected.value)


def test_processes_end_with_one_that_is_killed():
    script = """
import sys
from pathlib import Path
from tasks.training.drawing import PatchProcesses
from tests.tasks.small_training import small_job
job = small_job(Path())
with PatchProcesses(job.volumes, job.config, 2) as drawn:
    drawn.next_batch()
    print(flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdin=-1, stdout=-1) as parent:
        try:
            assert parent.stdout is not None
            parent.stdout.readline()
            processes = psutil.Process(parent.pid).children()
            assert len(processes) == 2
            parent.kill()
            until(lambda: not any(map(alive, processes)), seconds=60)
        finally:
            end(parent)
