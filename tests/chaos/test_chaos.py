"""The campaign in small; at length it is `python -m tests.chaos --minutes 30`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def campaign(module, *options, seconds):
    return subprocess.run(
        [sys.executable, "-m", module, *options], cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds
    )


def test_a_few_histories_of_starts_kills_and_damage():
    done = campaign("tests.chaos.machine", "--count", "5", "--seed", "5", seconds=240)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["histories"] >= 5
    assert found["faults"] > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_minute_of_faults():
    done = campaign("tests.chaos", "--minutes", "1", seconds=840)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "repeat with" in done.stdout
