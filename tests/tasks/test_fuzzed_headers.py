"""Mutated headers: refused with a message or read, never a traceback, a hang or much memory."""

import json
import subprocess
import sys
from pathlib import Path


def test_two_thousand_mutated_headers():
    # A process of its own, so that its peak of memory is its own; what nibabel leaves open is nibabel's.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-m", "tests.tasks.fuzz_headers", "2000", "7"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["refused"] + found["passed"] == 2000
    assert min(found["refused"], found["passed"]) > 200
    assert found["slowest"] < 5
    assert found["peak_mib"] < 1024
