"""Read mutated files in this process: `python -m tests.chaos.fuzz --kind KIND --count N --seed S`.

Each try makes one mutated file from its own seed and reads it as a command does. It passes, or is refused by one error
of voxlift's in one line without the folder; anything else is a failure, and so are more than 5 seconds of a processor.

Prints as JSON, by kind, how many were refused and how many passed, the longest time that one took, the failures, and
the peak of memory. A failure is repeated by its kind, its seed and `--count 1`.
"""

import argparse
import gzip
import io
import json
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import nibabel
import numpy as np

from benchmarks.memory import peak_mib
from configs.axes import FileShape
from configs.errors import VoxliftError
from configs.load import flatten, load_config, load_sweep, preset_names
from configs.schema import Resources
from tasks.artifacts.contracts import volume_contract
from tasks.artifacts.manifest import manifest_entry, read_contracts, write_contracts
from tasks.artifacts.network_file import parse_network
from tasks.artifacts.shipped import shipped_network
from tasks.files.lock import Process, locked
from tasks.files.selection import expand_inputs
from tasks.sharding.plan import Shard
from tasks.sharding.store import ShardStore
from tasks.training.checkpoints import Checkpoint, last_checkpoint, write_checkpoint
from tasks.volume.encoding import Encoding, stored_name
from tasks.volume.grid import Grid
from tasks.volume.inspection import inspect_volume
from tasks.volume.nifti import open_volume, write_slabs, write_volume
from tests.chaos.mutator import mutated_bytes, mutated_json, mutated_text, mutated_value
from tests.tasks.images import affine, ramp, save
from workflow.tracking import RunAddress
from workflow.train.sweep import all_trials
from workflow.upscale.plan import UpscaleRequest
from workflow.upscale.report import volume_report
from workflow.upscale.volume_work import VolumeWork
from workflow.upscale.volumes import plan_volumes

SLOW = 5.0  # seconds of the processor
MAX_MESSAGE = 1500  # characters
NOT_FINITE = "it has voxels that are NaN or infinite"
FORMATS = [
    (".nii", nibabel.Nifti1Image, 352),
    (".nii.gz", nibabel.Nifti1Image, 352),
    (".nii", nibabel.Nifti2Image, 544),
    (".mgh", nibabel.MGHImage, 100),
    (".mgz", nibabel.MGHImage, 100),
]


class Fuzz(ABC):
    """A kind of file.

    Args:
        folder: Empty, for valid and mutated files.
    """

    may_name_folder = False  # where a message names a file as the user did

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def once(self, generator: np.random.Generator) -> None:
        """Mutate a valid file and read it: passes, raises a VoxliftError, or fails."""


class Headers(Fuzz):
    """Headers of volumes in five formats; a volume that passes is copied, and the copy keeps its contract."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.valid = []
        for index, (ending, kind, header) in enumerate(FORMATS):
            path = save(folder / f"valid{index}{ending}", ramp(affine(), (9, 8, 7)), affine(), kind=kind)
            raw = path.read_bytes()
            self.valid.append((ending, gzip.decompress(raw) if ending.endswith("z") else raw, header))

    def once(self, generator: np.random.Generator) -> None:
        ending, raw, header = self.valid[generator.integers(len(self.valid))]
        raw = mutated_bytes(raw, generator, first=header)
        path, copy = self.folder / f"mutated{ending}", self.folder / "copy.nii"
        path.write_bytes(gzip.compress(raw, 1) if ending.endswith("z") else raw)
        inspect_volume(path)
        scan = open_volume(path)
        slabs = (slab for time in range(scan.header.n_timepoints) for slab in scan.slabs(time))
        write_slabs(copy, slabs, scan.grid, scan, n_timepoints=scan.header.n_timepoints)
        contract = volume_contract(scan.grid, stored_name(scan.header.dtype, None), scan.header.n_timepoints)
        violations = set(contract.read_back(copy).violations)
        assert not violations - {NOT_FINITE}, f"the copy violates its contract: {violations}"


class Streams(Fuzz):
    """Bytes of compressed volumes: what passes has the voxels of the valid file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.valid = []
        self.voxels = ramp(affine(), (9, 8, 7)).astype(np.float32)
        for ending in (".nii.gz", ".nii.bz2", ".mgz"):
            kind = nibabel.MGHImage if ending == ".mgz" else nibabel.Nifti1Image
            path = save(folder / f"valid{ending}", self.voxels, affine(), kind=kind)
            self.valid.append((ending, path.read_bytes()))

    def once(self, generator: np.random.Generator) -> None:
        ending, raw = self.valid[generator.integers(len(self.valid))]
        path = self.folder / f"mutated{ending}"
        path.write_bytes(mutated_bytes(raw, generator))
        for volume in inspect_volume(path).volumes():
            assert np.array_equal(volume.voxels, self.voxels), "damaged voxels pass"


class Models(Fuzz):
    """`.keras` files: bytes of the archive, values of its configuration and card, bytes of its weights."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with zipfile.ZipFile(io.BytesIO(shipped_network().content)) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}
        self.json = [name for name in self.members if name.endswith(".json")]

    def once(self, generator: np.random.Generator) -> None:
        members, kind = dict(self.members), generator.integers(4)
        if kind < 2:
            name = self.json[generator.integers(len(self.json))]
            members[name] = mutated_json(members[name], generator)
        elif kind == 2:
            members["model.weights.h5"] = mutated_bytes(members["model.weights.h5"], generator, first=1 << 14)
        if generator.random() < 0.05:
            del members[list(members)[generator.integers(len(members))]]
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        content = packed.getvalue()
        network = parse_network("mutated.keras", mutated_bytes(content, generator) if kind == 3 else content)
        if network.card is not None:
            network.card.warnings((2.0, 2.0, 2.0), (1.0, 1.0, 1.0))


class Configurations(Fuzz):
    """YAML: text of the presets and of sweeps, and values of overrides."""

    may_name_folder = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        presets = Path(str(load_config.__code__.co_filename)).parent
        self.texts = [(presets / f"{name}.yaml").read_bytes() for name in preset_names()]
        self.texts.append(
            b"degradation: iso2x\nsweep: {training.seed: [0, 1], training.learning_rate: {from: 1, to: 2}}\n"
        )
        self.leaves = list(flatten(load_config("demo")).items())

    def once(self, generator: np.random.Generator) -> None:
        path = self.folder / "mutated.yaml"
        if generator.random() < 0.5:
            key, value = self.leaves[generator.integers(len(self.leaves))]
            value = mutated_text(value.encode(), generator).decode("utf-8", "replace")
            if generator.random() < 0.5:
                value = json.dumps(mutated_value([value, 1, 2.0, {"every": 1}], generator))
            load_config("demo", [" ".join(f"{key}={value}".split())])
            return
        path.write_bytes(mutated_text(self.texts[generator.integers(len(self.texts))], generator))
        if generator.random() < 0.5:
            load_config(path)
        else:
            varied, configured = load_sweep(path)
            for trial in all_trials(varied)[:3]:
                configured(trial.settings)


class Checkpoints(Fuzz):
    """Bytes of a checkpoint: it is read as it was written, passed over for the one before, or refused."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.config = load_config("demo")
        values = np.random.default_rng(0).random((40, 5), np.float32)
        for step in (5, 10):
            checkpoint = Checkpoint(step, [values * step, values[0]], np.arange(float(step)), [values], 30.0, 1, [30.0])
            write_checkpoint(folder, checkpoint, self.config)
        self.last = folder / "step-00000010.npz"
        self.raw = self.last.read_bytes()
        self.expected = {step: values * step for step in (5, 10)}

    def once(self, generator: np.random.Generator) -> None:
        self.last.write_bytes(mutated_bytes(self.raw, generator))
        found = last_checkpoint(self.folder, self.config)
        assert found is not None, "there is a checkpoint before it"
        assert np.array_equal(found.variables[0], self.expected[found.step]), "a damaged checkpoint passes"


class Manifests(Fuzz):
    """`contracts.json`: values and text; a file outside its folder is never read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        inner = folder / "run"
        inner.mkdir()
        (folder / "x").write_text("outside")
        grid = Grid(FileShape(5, 4, 3), np.eye(4))
        write_volume(inner / "a.nii", np.arange(60, dtype=np.float32).reshape(5, 4, 3), grid)
        (inner / "b.txt").write_text("b")
        entries = {
            "a.nii": manifest_entry(inner / "a.nii", volume_contract(grid, "float32")),
            "b.txt": manifest_entry(inner / "b.txt"),
        }
        write_contracts(inner, entries, "0" * 32)
        self.inner, self.raw = inner, (inner / "contracts.json").read_bytes()

    def once(self, generator: np.random.Generator) -> None:
        path = self.inner / "contracts.json"
        raw = self.raw
        if generator.random() < 0.1:
            raw = raw.replace(
                b'"b.txt"', json.dumps(str(generator.choice(["../x", str(self.folder / "x"), "a\\b"]))).encode()
            )
            path.write_bytes(raw)
        else:
            path.write_bytes(mutated_json(raw, generator))
        contracts = read_contracts(self.inner)
        problems = contracts.problems(self.inner, alone=True)
        for name in contracts.seals:
            outside = not (self.inner / name).resolve().is_relative_to(self.inner.resolve())
            assert not outside or name in problems, f"{name} passes"


class Lists(Fuzz):
    """Lists of volumes, as text and as tables."""

    def once(self, generator: np.random.Generator) -> None:
        kind = str(generator.choice(["txt", "csv", "tsv"]))
        valid = {
            "txt": b"# all\na.nii\nb.nii.gz[3]\n",
            "csv": b"id,path\n1,a.nii\n2,b.nii\n",
            "tsv": b"id\tpath\n1\ta.nii\n",
        }
        path = self.folder / f"mutated.{kind}"
        path.write_bytes(mutated_text(valid[kind], generator))
        for found in expand_inputs([path]):
            open_volume(found)


class States(Fuzz):
    """Records by which a run is resumed: the address of the run, the record of an output, locks, cores."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.address = folder / "run.json"
        RunAddress("sqlite:////nowhere/mlflow.db", "voxlift", "0" * 32).write(self.address)
        self.addressed = self.address.read_bytes()
        self.source = folder / "scan.nii"
        grid = Grid(FileShape(9, 8, 7), np.eye(4))
        write_volume(self.source, ramp(np.eye(4), (9, 8, 7)).astype(np.float32), grid)
        request = UpscaleRequest(
            [self.source], folder / "out", shipped_network(), Resources(workers=1), scale=(2, 2, 2), resume=True,
            place="here",
        )  # fmt: skip
        self.request = request
        (work,) = plan_volumes(request)
        assert isinstance(work, VolumeWork)
        (folder / "out" / ".voxlift").mkdir(parents=True)
        from tasks.files.trees import file_digest

        write_volume(work.plan.output, np.zeros(work.plan.target.shape, np.float32), work.plan.target)
        self.record = work._record
        written = {"sha256": "0" * 64, "consistency": 0.1, "consistency_before": 0.2, "noise": 0.01, "outside": 0.5}
        content = {"output": file_digest(work.plan.output), "asked": work._options, "written": written}
        self.recorded = json.dumps(content).encode()
        self.record.write_bytes(self.recorded)
        (again,) = plan_volumes(request)
        assert isinstance(again, VolumeWork)
        assert again.written is not None, "a whole record is not read"
        self.lock = folder / "lock"
        self.held = Process.this().text(host="here", token="0").encode()  # noqa: S106 - no secret
        self.shard = Shard(((0, 4), (0, 5), (0, 6)), ((0, 4), (0, 5), (0, 6)))
        comparison = work.plan.comparison(Encoding("float32"))
        assert comparison is not None
        self.store = ShardStore(folder / "cores", comparison=comparison)
        voxels = np.random.default_rng(0).random((4, 5, 6), np.float32)
        self.store.save(self.shard, voxels, part=voxels[:2, :2, :3])
        (self.core,) = (folder / "cores").iterdir()
        self.stored = self.core.read_bytes()

    def once(self, generator: np.random.Generator) -> None:
        [self._address, self._record, self._lock, self._core][generator.integers(4)](generator)

    def _address(self, generator: np.random.Generator) -> None:
        self.address.write_bytes(mutated_json(self.addressed, generator))
        found = RunAddress.read(self.address)
        assert found is not None
        assert all(isinstance(value, str) for value in asdict(found).values()), f"an address of {found}"

    def _record(self, generator: np.random.Generator) -> None:
        self.record.write_bytes(mutated_json(self.recorded, generator))
        (work,) = plan_volumes(self.request)
        assert isinstance(work, VolumeWork)
        if work.written is not None:
            json.dumps(asdict(volume_report(work)), default=str)

    def _lock(self, generator: np.random.Generator) -> None:
        self.lock.write_bytes(mutated_json(self.held, generator))
        try:
            with locked(self.lock, "it"):
                pass
        finally:
            self.lock.unlink(missing_ok=True)

    def _core(self, generator: np.random.Generator) -> None:
        raw = mutated_bytes(self.stored, generator)
        self.core.write_bytes(raw)
        assert self.store.holds(self.shard) == (raw == self.stored), "a damaged core passes"


KINDS: dict[str, type[Fuzz]] = {
    "headers": Headers,
    "streams": Streams,
    "models": Models,
    "configurations": Configurations,
    "checkpoints": Checkpoints,
    "manifests": Manifests,
    "lists": Lists,
    "states": States,
}


@dataclass
class Found:
    """Outcome of the tries of one kind."""

    refused: int = 0
    passed: int = 0
    slowest: float = 0.0
    failures: list[tuple[int, str]] = field(default_factory=list)

    @property
    def tries(self) -> int:
        return self.refused + self.passed + len(self.failures)


def attempt(fuzz: Fuzz, seed: int, found: Found) -> None:
    """Make one try and count it."""
    begun = time.process_time()
    try:
        fuzz.once(np.random.default_rng(seed))
        found.passed += 1
    except VoxliftError as error:
        message = str(error)  # whose remedy may name a file of this run by its path
        named = str(fuzz.folder) in error.problem and not fuzz.may_name_folder
        if "\n" in message or named or len(message) > MAX_MESSAGE:
            found.failures.append((seed, f"not one short line: {message[:300]!r}"))
        else:
            found.refused += 1
    except Exception:  # noqa: BLE001 - which is what is looked for
        found.failures.append((seed, traceback.format_exc(limit=-3)))
    seconds = time.process_time() - begun
    found.slowest = max(found.slowest, seconds)
    if seconds > SLOW:
        found.failures.append((seed, f"{seconds:.1f} s"))


def fuzzed(kinds: list[str], seed: int, more: Callable[[int], bool]) -> dict[str, Found]:
    """Try kinds in turn, in rounds of ten, for as long as `more` says of the number of tries so far."""
    results, tries = {kind: Found() for kind in kinds}, 0
    with tempfile.TemporaryDirectory() as scratch:
        fuzzes = {}
        for kind in kinds:
            folder = Path(scratch) / kind
            folder.mkdir()
            fuzzes[kind] = KINDS[kind](folder)
        while more(tries):
            for kind, fuzz in fuzzes.items():
                for _ in range(10):
                    attempt(fuzz, seed + results[kind].tries, results[kind])
                    tries += 1
                    if not more(tries):
                        return results
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kind", choices=KINDS, action="append", help="may be repeated; all by default")
    parser.add_argument("--count", type=int, help="tries in all")
    parser.add_argument("--seconds", type=float, help="instead of a count")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", ResourceWarning)  # what nibabel leaves open
    end = time.monotonic() + (given.seconds or 0)

    def more(tries: int) -> bool:
        return tries < given.count if given.count is not None else time.monotonic() < end

    results = fuzzed(given.kind or list(KINDS), given.seed, more)
    shown = {kind: asdict(found) for kind, found in results.items()}
    sys.stdout.write(json.dumps({"kinds": shown, "peak_mib": peak_mib()}, indent=1) + "\n")
    sys.exit(any(found.failures for found in results.values()))


if __name__ == "__main__":
    main()
