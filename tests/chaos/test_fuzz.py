"""Mutated files of every kind: refused with a message or read, never a traceback, a hang or much memory."""

import json
import subprocess
import sys
from pathlib import Path

from tests.chaos.fuzz import KINDS


def test_eight_hundred_mutated_files():
    # A process of its own, so that its peak of memory is its own.
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.fuzz", "--count", "800", "--seed", "7"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert set(report["kinds"]) == set(KINDS)
    for found in report["kinds"].values():
        assert found["refused"] + found["passed"] == 100
    headers = report["kinds"]["headers"]
    assert min(headers["refused"], headers["passed"]) > 20
    assert report["peak_mib"] < 1024
