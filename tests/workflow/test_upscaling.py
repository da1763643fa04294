"""Many volumes through one queue: failures kept apart, an interrupted run resumed, nothing computed twice."""

import gc
import hashlib
import json
import shutil
import signal
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from traceback import extract_stack
from typing import TYPE_CHECKING

import numpy as np
import pytest

from configs.axes import FileShape
from configs.errors import ConfigError, ContractError, InputError
from configs.schema import Resources
from tasks.artifacts.network_file import read_network
from tasks.imaging.resample import resample, resample_window
from tasks.sharding.restore import RestoredCore
from tasks.volume.grid import Grid, scaled_grid
from tasks.volume.nifti import open_volume, read_volume, write_slabs, write_volume
from tests.networks import small_restorer
from tests.tasks.images import packaged_volumes
from tests.workflow.light_restorer import LightRestorer
from workflow.cluster import fetch
from workflow.upscale.plan import UpscaleRequest
from workflow.upscale.report import summary
from workflow.upscale.volume_work import VolumeError, VolumeWork
from workflow.upscale.volumes import plan_volumes, upscale

if TYPE_CHECKING:
    from workflow.restore.restoration import Progress

pytestmark = pytest.mark.usefixtures("ray_cluster", "light_workers")

BUDGET = 44


@pytest.fixture
def light_workers(monkeypatch):
    monkeypatch.setattr("workflow.restore.restoration.worker_restorer", LightRestorer)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.keras"
    small_restorer().save(path)
    return read_network(path)


@pytest.fixture
def scan(tmp_path):
    """A volume in an orientation of its own that takes several shards."""
    path = tmp_path / "scan.nii"
    affine = np.array([[0, 0, 1.5, -20], [-1, 0, 0, 9], [0, 2, 0, -30], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).gamma(2.0, 300.0, size=(48, 41, 52)).astype(np.float32)
    write_volume(path, voxels, Grid(FileShape(*voxels.shape), affine))
    return path


def request(network, out, *sources, **options):
    resources = Resources(workers=options.pop("workers", 2), memory_budget_mib=options.pop("budget", BUDGET), retries=0)
    return UpscaleRequest(sources, out, network, resources, scale=(2, 2, 2), **options)


def run(upscale_request, on_progress=None):
    return upscale(upscale_request, plan_volumes(upscale_request), on_progress)


def test_an_output_is_the_restored_volume_on_the_target_grid(network, scan, tmp_path):
    reported: list[Progress] = []
    report = run(request(network, tmp_path / "out", scan), reported.append)
    (volume,) = report.volumes
    assert volume.shards > 2
    assert (volume.status, volume.shards_resumed, volume.retries) == ("done", 0, 0)
    before, after = read_volume(scan), read_volume(volume.output)
    expected = np.maximum(resample(before.voxels, (96, 82, 104)), 0)  # no voxel of the input is negative
    np.testing.assert_allclose(after.voxels, expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(after.grid.affine, scaled_grid(before.grid, (2, 2, 2)).affine, atol=1e-6)
    assert volume.output_shape == (96, 82, 104)
    assert volume.consistency == pytest.approx(0, abs=0.2)
    assert json.loads((tmp_path / "out/scan_sr.json").read_text())["Consistency"] == volume.consistency
    assert [progress.shards_done for progress in reported] == list(range(1, volume.shards + 1))
    assert reported[-1].voxels_done == reported[-1].voxels == 96 * 82 * 104
    assert (report.peak_rss_mib, report.workers, report.failed) == (100.0, 2, ())
    assert report.timings.network == pytest.approx(0.2 * volume.shards)
    assert report.plan.overhead > 1
    assert report.plan.least_budget_mib <= BUDGET


def test_the_precision_is_recorded_with_its_error_and_never_mixed(network, scan, tmp_path):
    out = tmp_path / "out"
    (exact,) = run(request(network, out, scan)).volumes
    assert (exact.precision, exact.precision_psnr) == ("float32", None)
    coarser = request(replace(network, precision="bfloat16"), out, scan, resume=True)
    for status in ("done", "resumed"):
        report = run(coarser)
        (volume,) = report.volumes
        assert (volume.status, volume.precision, volume.precision_psnr) == (status, "bfloat16", 61.5)
        written = json.loads((out / "scan_sr.json").read_text())
        assert (written["Precision"], written["PrecisionPSNR"]) == ("bfloat16", 61.5)
        text = "\n".join(line for line in summary(report) if isinstance(line, str))
        assert "scan.nii: computed in bfloat16, 61.5 dB PSNR against float32." in text
        assert ("2 worker(s) on CPU" in text) == (status == "done")


def test_any_number_of_workers_gives_the_same_bytes(network, scan, tmp_path):
    digests = {
        run(request(network, tmp_path / str(workers), scan, workers=workers, inferred=True)).volumes[0].sha256
        for workers in (1, 3)
    }
    assert len(digests) == 1
    for name in ("scan_sr.nii", "scan_sr_inferred.nii"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


@pytest.mark.parametrize("corrects", [False, True])
def test_cores_may_arrive_in_any_order_while_the_output_is_written(network, scan, tmp_path, corrects):
    written = set()
    for seed in range(3):
        (work,) = plan_volumes(request(network, tmp_path / str(seed), scan))
        assert isinstance(work, VolumeWork)
        plan = replace(work.plan, corrects=corrects)
        work = VolumeWork(plan, work.inspected, resume=False, seconds=0, place="cluster")
        frame = next(work.frames)
        coarse = fetch(frame.coarse)
        shards = list(frame.to_compute)
        assert len(shards) > 3
        np.random.default_rng(seed).shuffle(shards)
        with ThreadPoolExecutor(1) as behind:
            writing = behind.submit(work.write)
            for shard in shards:
                window = resample_window(coarse.voxels, coarse.target_shape, shard.read)[shard.crop]
                work.arrive(0, shard, RestoredCore(window, 0.0, 0.0, 0.0).stored(coarse, shard))
            writing.result()
        written.add((work.written, plan.output.read_bytes()))
    assert len(written) == 1


def test_inputs_of_the_same_bytes_are_kept_apart(network, scan, tmp_path):
    shutil.copy(scan, tmp_path / "again.nii")
    one, other = run(request(network, tmp_path / "out", scan, tmp_path / "again.nii")).volumes
    assert (one.status, other.status, one.sha256) == ("done", "done", other.sha256)


def test_time_points_are_restored_one_by_one(network, tmp_path):
    voxels = np.random.default_rng(1).gamma(2.0, 300.0, size=(3, 30, 20, 12)).astype(np.float32)
    voxels[1] = 5
    write_slabs(tmp_path / "series.nii.gz", list(voxels), Grid(FileShape(30, 20, 12), np.eye(4)), n_timepoints=3)
    (volume,) = run(request(network, tmp_path / "out", tmp_path / "series.nii.gz")).volumes
    assert volume.output_shape == (60, 40, 24, 3)
    scan = open_volume(volume.output)
    low_and_high = json.loads((tmp_path / "out/series_sr.json").read_text())["Intensity"]
    assert low_and_high == [
        [0, pytest.approx(np.percentile(voxels[0], 99.5))],
        low_and_high[0],  # a constant time point goes by the one before it
        [0, pytest.approx(np.percentile(voxels[2], 99.5))],
    ]
    for number in range(3):
        expected = np.maximum(resample(voxels[number], (60, 40, 24)), 0)
        np.testing.assert_allclose(scan.read(number).voxels, expected, rtol=1e-5, atol=1e-3)


def bright_and_bad(tmp_path):
    write_volume(tmp_path / "bright.nii", np.linspace(0, 2e6, 8000, dtype=np.float32).reshape(20, 20, 20), grid(20))
    (tmp_path / "text.nii.gz").write_text("hello")
    write_volume(tmp_path / "flat.nii", np.full((9, 9, 9), 7, np.float32), grid(9))
    write_volume(tmp_path / "small.nii", np.linspace(0, 1, 64, dtype=np.float32).reshape(4, 4, 4), grid(4))
    return [tmp_path / name for name in ("bright.nii", "text.nii.gz", "flat.nii", "small.nii")]


def grid(size):
    return Grid(FileShape(*(size,) * 3), np.eye(4))


def test_one_volume_fails_alone(network, tmp_path):
    report = run(request(network, tmp_path / "out", *bright_and_bad(tmp_path)))
    assert [volume.status for volume in report.volumes] == ["failed", "failed", "failed", "done"]
    bright, text, flat = (volume.error for volume in report.failed)
    assert bright == "Cannot super-resolve bright.nii: RuntimeError: too bright"
    assert text.startswith("Cannot read text.nii.gz")
    assert flat.startswith("Cannot use flat.nii: it is an empty image, every voxel is 7")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.*")) == [".voxlift", "small_sr.json", "small_sr.nii"]


def test_volumes_that_are_done_or_failed_take_no_memory(network, tmp_path):
    levels, size = [1.0] * 8 + [4e6] * 4, 40
    for number, level in enumerate(levels):
        voxels = level * np.random.default_rng(number).random((size, size, size), np.float32)
        write_volume(tmp_path / f"{number}.nii.gz", voxels, grid(size))
    sources = [tmp_path / f"{number}.nii.gz" for number in range(len(levels))]
    run(request(network, tmp_path / "warm", sources[0]))
    upscale_request = request(network, tmp_path / "out", *sources)
    tracemalloc.start()
    try:
        planned = plan_volumes(upscale_request)
        report = upscale(upscale_request, planned)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (len(planned), len(report.failed)) == (12, 4)
    assert held < 3 * 4 * size**3


def test_a_core_with_nan_fails_its_volume_and_leaves_no_output(network, tmp_path):
    voxels = np.linspace(-2e6, 1, 8000, dtype=np.float32).reshape(20, 20, 20)
    write_volume(tmp_path / "dark.nii", voxels, grid(20), dtype="int32")  # in which a NaN would be a 0
    sources = [tmp_path / "dark.nii", bright_and_bad(tmp_path)[-1]]
    dark, small = run(request(network, tmp_path / "out", *sources)).volumes
    assert (dark.status, small.status) == ("failed", "done")
    assert dark.error.startswith("Cannot super-resolve dark.nii: the network made 1 of 64000 voxels NaN or infinite.")
    assert [path.name for path in (tmp_path / "out").glob("dark*")] == []
    with pytest.raises(VolumeError, match=r"Cannot super-resolve dark\.nii: the network made"):
        run(request(network, tmp_path / "out", sources[0], fail_fast=True))


def test_a_stored_core_with_nan_fails_its_volume_on_resuming(network, scan, tmp_path):
    out = tmp_path / "out"
    interrupted(request(network, out, scan), after=2)
    content = bytearray(cores(out)[0].read_bytes()[:-32])
    content[:4] = np.float32(np.inf).tobytes()
    cores(out)[0].write_bytes(bytes(content) + hashlib.sha256(content).digest())
    (volume,) = run(request(network, out, scan, resume=True)).failed
    assert "voxels NaN or infinite" in str(volume.error)
    assert not list(out.glob("scan*"))


def test_an_output_that_violates_its_contract_does_not_stay(network, scan, tmp_path):
    def violated(*_):
        raise ContractError("scan_sr.nii violates its contract.")

    upscale_request = request(network, tmp_path / "out", scan)
    (volume,) = upscale(upscale_request, plan_volumes(upscale_request), on_written=violated).failed
    assert "violates its contract" in str(volume.error)
    assert not list((tmp_path / "out").glob("scan*"))


def test_fail_fast_stops_at_the_first_failure(network, tmp_path):
    bright, *_, small = bright_and_bad(tmp_path)
    with pytest.raises(RuntimeError, match="too bright"):
        run(request(network, tmp_path / "out", bright, small, fail_fast=True))
    assert not (tmp_path / "out/bright_sr.nii").exists()


def test_fail_fast_stops_at_an_output_that_cannot_be_written(network, scan, tmp_path):
    (tmp_path / "out/scan_sr.nii").mkdir(parents=True)
    (volume,) = run(request(network, tmp_path / "out", scan)).failed
    assert volume.error.startswith("Cannot super-resolve scan.nii: [Errno 21] Is a directory")
    with pytest.raises(VolumeError, match=r"^Cannot super-resolve scan\.nii: \[Errno 21\] Is a directory"):
        run(request(network, tmp_path / "out", scan, fail_fast=True))


def fails_by_an_error_that_is_behind_its_own_cause(work):
    """In place of `VolumeWork.write`."""
    full, wrapped = OSError("the disk is full"), OSError("the output was not written")
    full.__context__, wrapped.__cause__ = wrapped, full
    raise wrapped


def test_an_error_that_is_behind_its_own_cause_fails_its_volume(network, scan, tmp_path, monkeypatch):
    monkeypatch.setattr(VolumeWork, "write", fails_by_an_error_that_is_behind_its_own_cause)
    (volume,) = run(request(network, tmp_path / "out", scan)).failed
    assert "the output was not written" in volume.error


def stuck_until_the_run_is_stopped(work):
    """In place of `VolumeWork.write`: interrupts the driver, as soon as it waits for nothing but this."""
    names: list[str] = []
    while "shutdown" not in names:
        time.sleep(0.01)
        names = [entry.name for entry in extract_stack(sys._current_frames()[threading.main_thread().ident or 0])]
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    work._arrivals.wait(0, "a shard that never comes")


def test_an_interrupt_while_the_last_output_is_written_ends_the_run(network, scan, tmp_path, monkeypatch):
    monkeypatch.setattr(VolumeWork, "write", stuck_until_the_run_is_stopped)
    with pytest.raises(KeyboardInterrupt):
        run(request(network, tmp_path / "out", scan))
    monkeypatch.undo()


def test_a_single_volume_that_cannot_be_used_is_refused_with_its_sentence(network, tmp_path):
    _, text, flat, small = bright_and_bad(tmp_path)
    with pytest.raises(InputError, match=r"Cannot read text\.nii\.gz"):
        plan_volumes(request(network, tmp_path, text))
    with pytest.raises(InputError, match=r"Raise --memory-budget"):
        plan_volumes(request(network, tmp_path, small, budget=1))
    with pytest.raises(InputError, match=r"Cannot use flat\.nii"):
        plan_volumes(request(network, tmp_path, flat))


def test_no_room_for_the_workers_is_reported(network, scan, tmp_path):
    with pytest.raises(ConfigError, match="room for 4"):
        run(request(network, tmp_path / "out", scan, workers=5))


class StoppedError(Exception):
    pass


def interrupted(upscale_request, after):
    def stop(progress):
        if progress.shards_done == after:
            raise StoppedError

    with pytest.raises(StoppedError):
        run(upscale_request, stop)


def cores(out: Path):
    return sorted(out.glob(".voxlift/*/0/*.core"))


def test_a_resumed_run_computes_only_absent_and_truncated_cores(network, scan, tmp_path):
    whole = run(request(network, tmp_path / "whole", scan)).volumes[0]
    out = tmp_path / "out"
    interrupted(request(network, out, scan), after=3)
    assert not list(out.glob("*.nii"))
    kept = len(cores(out))
    assert kept >= 3
    cores(out)[0].write_bytes(cores(out)[0].read_bytes()[:-7])

    computed: list[Progress] = []
    volume = run(request(network, out, scan, resume=True), computed.append).volumes[0]
    assert (volume.status, volume.shards_resumed, len(computed)) == ("done", kept - 1, volume.shards - kept + 1)
    assert computed[-1].shards == len(computed)
    assert volume.sha256 == whole.sha256
    assert (out / "scan_sr.nii").read_bytes() == (tmp_path / "whole/scan_sr.nii").read_bytes()
    assert not cores(out)

    again = run(request(network, out, scan, resume=True)).volumes[0]
    assert (again.status, again.shards_resumed, again.sha256) == ("resumed", volume.shards, whole.sha256)


def test_a_missing_sidecar_is_written_on_resuming(network, scan, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("workflow.upscale.volumes.write_sidecar", full)
        (failed,) = run(request(network, tmp_path, scan)).failed
    assert "No space left on device" in failed.error
    volume = run(request(network, tmp_path, scan, resume=True)).volumes[0]
    assert (volume.status, volume.shards_resumed) == ("resumed", volume.shards)
    assert (tmp_path / "scan_sr.json").is_file()


def test_a_truncated_record_is_ignored(network, scan, tmp_path):
    whole = run(request(network, tmp_path, scan)).volumes[0]
    (record,) = tmp_path.glob(".voxlift/*.json")
    record.write_text(record.read_text()[:40])
    volume = run(request(network, tmp_path, scan, resume=True)).volumes[0]
    assert (volume.status, volume.shards_resumed, volume.sha256) == ("done", 0, whole.sha256)


def test_cores_that_a_killed_run_left_after_its_record_are_removed(network, scan, tmp_path):
    run(request(network, tmp_path, scan))
    (record,) = tmp_path.glob(".voxlift/*.json")
    core = record.with_suffix("") / "0" / "0-8_0-8_0-8.core"
    core.parent.mkdir(parents=True)
    core.write_bytes(b"of no use any more")
    assert run(request(network, tmp_path, scan, resume=True)).volumes[0].status == "resumed"
    assert not core.parents[1].exists()


@pytest.mark.parametrize("change", ["input", "budget", "fresh"])
def test_cores_made_from_something_else_are_not_used(network, scan, tmp_path, change):
    out = tmp_path / "out"
    interrupted(request(network, out, scan), after=2)
    budget = BUDGET
    if change == "input":
        volume = read_volume(scan)
        write_volume(scan, volume.voxels + 1, volume.grid)
    if change == "budget":
        budget = 2 * BUDGET
    volume = run(request(network, out, scan, resume=change != "fresh", budget=budget)).volumes[0]
    assert (volume.status, volume.shards_resumed) == ("done", 0)


def test_the_slice_axis_is_the_one_that_is_given(network, scan, tmp_path):
    (by_spacing,) = plan_volumes(request(network, tmp_path / "out", scan))
    (given,) = plan_volumes(request(network, tmp_path / "out", scan, slice_axis=2))
    assert isinstance(by_spacing, VolumeWork)
    assert isinstance(given, VolumeWork)
    assert (by_spacing.plan.axes.order[0], given.plan.axes.order[0]) == (1, 2)
    assert given.plan.shard_plan.target_shape[0] == 104


def test_every_volume_in_the_packages_is_upscaled_in_its_own_frame(network, tmp_path):
    sources = list({path.name: path for path in packaged_volumes()}.values())
    upscale_request = replace(request(network, tmp_path / "out", *sources, budget=400), scale=(1, 1, 2))
    for volume in run(upscale_request).volumes:
        assert volume.status == "done", volume.error
        before, after = open_volume(volume.input), open_volume(volume.output)
        np.testing.assert_allclose(after.grid.corners(), before.grid.corners(), atol=1e-4)
        assert after.grid.shape == (*before.grid.shape[:2], 2 * before.grid.shape[2])
        assert after.header.n_timepoints == before.header.n_timepoints
        if before.header.n_timepoints > 1:
            assert after.header.time_step == pytest.approx(before.header.time_step)
            assert after.header.units[1] == before.header.units[1]
