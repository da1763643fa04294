"""Arrays in shared memory: not copied for other processes, and of them only what is read stays mapped."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs.axes import NetworkShape
from configs.degradation import named_degradation
from tasks.imaging.consistency import Correction, interpolation_correction
from tasks.machine import shared_memory
from tasks.machine.shared_memory import BLOCK_BYTES, Shared, Windowed, blocks, shared_file

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
READER = """
import pickle, sys
from tasks.machine.shared_memory import Windowed, blocks

def shared_mib():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssShmem")) / 1024

array = pickle.load(sys.stdin.buffer)["array"]
before, largest, total = shared_mib(), 0, 0.0
for start, block in blocks(array):
    total += float(block[:, 0, 0].sum())
    assert block.max() < 2
    largest = max(largest, shared_mib())
window = Windowed(array)[:, 30:40, 5:7]
print(array.flags.writeable, total, float(window.sum()), before, largest, shared_mib())
"""


@pytest.fixture(scope="module")
def array():
    return np.random.default_rng(0).random((64, 256, 1024), np.float32)  # 64 MiB


def test_another_process_reads_an_array_without_keeping_it_mapped(array):
    shared = Shared({"array": array})
    command = [sys.executable, "-c", READER]
    done = subprocess.run(command, cwd=ROOT, input=pickle.dumps(shared), capture_output=True, check=True)
    writeable, total, window, before, largest, after = done.stdout.decode().split()
    assert writeable == "False"
    assert float(total) == pytest.approx(array[:, 0, 0].sum(dtype=float))
    assert float(window) == pytest.approx(array[:, 30:40, 5:7].sum(dtype=float))
    limit = 1.5 * BLOCK_BYTES / MIB
    assert float(before) < limit
    assert BLOCK_BYTES / MIB <= float(largest) < limit
    assert float(after) < limit


def test_where_files_of_a_process_cannot_be_opened_by_others_they_get_a_copy(monkeypatch):
    value = {"array": np.arange(6.0), "name": "one"}
    shared = Shared(value)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    copy = pickle.loads(pickle.dumps(shared))  # noqa: S301 - made here
    assert copy["name"] == "one"
    np.testing.assert_array_equal(copy["array"], value["array"])


def test_private_memory_keeps_its_values(array):
    before = array.copy()
    assert sum(len(block) for _, block in blocks(array)) == len(array)
    np.testing.assert_array_equal(array, before)


def test_shared_memory_that_is_given_back_keeps_its_values(array):
    value = Shared(array).value
    for _ in range(2):
        found = [block.copy() for _, block in blocks(value)]
        assert len(found) == 4
        np.testing.assert_array_equal(np.concatenate(found), array)


@pytest.mark.parametrize(
    "window", [np.s_[3:60, 10:20, :], np.s_[:, :, 7:8], np.s_[5:5, :, :], np.s_[:1, :1, :1], np.s_[:, ::-1, 2:9]]
)
def test_windows_are_those_of_the_array(array, window):
    for each in (array, Shared(array).value, array.transpose(2, 0, 1)):
        np.testing.assert_array_equal(Windowed(each)[window], each[window])
    assert Windowed(array).shape == array.shape


@pytest.mark.parametrize("rows", [(slice(10, 18), slice(None), slice(None)), (slice(None), slice(4, 9), slice(2, 30))])
def test_a_correction_in_blocks_is_the_correction(monkeypatch, rows):
    coarse, fine = np.random.default_rng(1).random((12, 20, 16), np.float32), NetworkShape(24, 40, 32)
    correction = interpolation_correction(coarse, fine, named_degradation("kspace2x"))
    assert isinstance(correction, Correction)
    whole = correction.window(*rows)
    monkeypatch.setattr(shared_memory, "BLOCK_BYTES", 5 * coarse[0].nbytes)
    np.testing.assert_allclose(correction.window(*rows), whole, rtol=0, atol=1e-6)


def test_a_file_of_memory_has_its_size():
    with shared_file(100) as file:
        assert len(file.read()) == 100
