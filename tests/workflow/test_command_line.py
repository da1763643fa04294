"""The command line itself: help, version, what it lists, and how it writes to a terminal."""

import errno
import json
import os
import pty
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from queue import Queue

import jsonschema
import nibabel
import numpy as np
import pytest
import yaml
from rich.console import Console
from rich.table import Table

import configs
from configs.errors import InputError
from configs.load import preset_names
from configs.schema import RunConfig
from models.stages.presets import PRESETS
from tests.conftest import unused_port
from workflow.cli import COMMANDS, app, main
from workflow.commands.options import three_numbers
from workflow.terminal.console import screen
from workflow.terminal.progress import progress_bar, resumable, waiting


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_answers_to_h(voxlift, command):
    status, out, _ = voxlift(*command.split(), "-h")
    assert status == 0
    assert out.startswith("Usage: ")
    assert "-h, --help" in out


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ZeroDivisionError("by zero"), r"Stopped by an error that was not foreseen \(ZeroDivisionError\)"),
        (OSError(errno.ENOSPC, "No space left on device", "out/scan_sr.nii"), "Cannot write out/scan_sr.nii: the disk"),
        (InputError("Cannot read a\x1b[2J\udcff.nii.", "Rename it."), r"Cannot read a\\x1b\[2J\\udcff.nii. Rename it."),
    ],
)
def test_every_error_ends_in_one_message(monkeypatch, capsys, tmp_path, error, shown):
    def fail():
        raise error

    monkeypatch.setattr("workflow.cli.app", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == (2 if isinstance(error, InputError) else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"voxlift: {shown}", line)
    logs = list(tmp_path.iterdir())
    assert len(logs) == isinstance(error, ZeroDivisionError)
    assert all("ZeroDivisionError: by zero" in log.read_text() and str(log) in line for log in logs)


@pytest.mark.parametrize("name", [b"a\xff.nii.gz", b"a\x1b[31m.nii", b"a\nb.nii"])
def test_a_name_that_is_not_text_is_refused(tmp_path, voxlift, name):
    path = os.fsencode(tmp_path) + b"/" + name
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(9, 8, 7)), np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "a.nii.gz").rename(os.fsdecode(path))
    status, _, err = voxlift("inspect", os.fsdecode(path))
    assert status == 2
    assert "its path has bytes that are not text, or control characters" in " ".join(err.split())
    assert "\x1b" not in err
    Path(os.fsdecode(path)).rename(tmp_path / "ä\u202f1.nii.gz")
    assert voxlift("inspect", str(tmp_path / "ä\u202f1.nii.gz"))[0] == 0


def test_the_version_is_that_of_the_package(voxlift):
    assert voxlift("--version")[:2] == (0, f"voxlift {version('voxlift')}\n")


def test_the_presets_are_listed_one_a_line(voxlift):
    status, out, _ = voxlift("presets")
    assert status == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == preset_names()
    assert all(len(line.split()) > 5 for line in lines)
    assert json.loads(voxlift("presets", "--json")[1])["presets"].keys() == set(preset_names())


def test_the_schema_is_that_of_the_configuration(voxlift):
    status, out, _ = voxlift("schema")
    assert status == 0
    described = json.loads(out)
    assert described["properties"].keys() == {*RunConfig.model_fields, "sweep"}
    assert described["$schema"].startswith("https://json-schema.org/")
    assert yaml.safe_load(out) == described
    kept = Path(configs.__file__).with_name("voxlift.schema.json")
    assert kept.read_text() == out, "write it anew: voxlift schema > configs/voxlift.schema.json"


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_names_its_schema_and_keeps_to_it(name):
    folder = Path(configs.__file__).parent
    text = (folder / f"{name}.yaml").read_text()
    (schema,) = re.findall(r"\A# yaml-language-server: \$schema=(\S+)\n", text)
    jsonschema.validate(yaml.safe_load(text), json.loads((folder / schema).read_text()))


def test_words_are_completed(monkeypatch, capsys):
    def printed(*arguments):
        with pytest.raises(SystemExit):
            app(arguments, prog_name="voxlift")
        return capsys.readouterr().out

    # Asked for no name, it looks for a shell among the parents of this process, of which there may be none.
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    assert "complete -o default -F _voxlift_completion voxlift" in printed("--show-completion", "bash")
    monkeypatch.setenv("_VOXLIFT_COMPLETE", "complete_bash")
    for words, expected in {
        "voxlift p": ["presets", "promote"],
        "voxlift upscale --sp": ["--spacing"],
        "voxlift upscale --as ": ["image", "labels"],
        "voxlift train ": preset_names(),
        "voxlift dry-run iso": ["iso2x", "iso2x-three-stage"],
        "voxlift train configs/is": [],
        "voxlift shapes --preset ": [*PRESETS],
    }.items():
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
        assert printed().split() == expected


def test_one_number_counts_for_all_axes():
    assert three_numbers("2", "--scale") == three_numbers("2,2,2", "--scale") == (2.0, 2.0, 2.0)
    assert three_numbers("0.5", "--spacing") == (0.5, 0.5, 0.5)


def test_a_narrow_terminal_cuts_no_name(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    name, path = "sub-01_ses-baseline_acq-highres_run-02_rec-voxlift_T1w.nii.gz", "/data/[red]/" + "long/" * 30
    table = Table("volume", "status", "a column", "another column", "a third column")
    table.add_row(name, "done", "181x217x181", "0.5x0.5x0.5", "12 (3 resumed)")
    with screen(False) as opened:
        opened.show({}, table, path)
    out = capsys.readouterr().out
    assert "…" not in out
    assert "".join(line.split("│")[1].strip() for line in out.splitlines() if line.count("│") == 6) == name
    assert path in out


def test_a_preset_in_place_of_a_model_is_recognised(voxlift, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = voxlift("upscale", "scan.nii.gz", "--out", "out", "--model", "iso2x")
    assert status == 2
    assert err == (
        "voxlift: Cannot load the model iso2x: it is a preset, a configuration from which a model is trained."
        " Train it with `voxlift train iso2x`, then name the folder runs/iso2x.\n"
    )


def test_what_is_waited_for_is_named_at_once_and_again_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr("workflow.terminal.progress.LINE_SECONDS", 0.001)
    printed: Queue[str] = Queue()

    class Log(StringIO):
        def write(self, text):
            printed.put(text)
            return len(text)

    def line():
        return next(text for text in iter(partial(printed.get, timeout=60), "") if text.strip())

    console = Console(file=Log(), width=200)
    with waiting(console, "Starting Ray"):
        assert line() == "Starting Ray …\n"
        assert re.fullmatch(r"Starting Ray … \d+ s\n", line())
    while not printed.empty():
        printed.get()
    with waiting(console, "Reading runs", at_once=False):
        assert re.fullmatch(r"Reading runs … \d+ s\n", line())
    while not printed.empty():
        printed.get()
    with progress_bar(console, "Restoring", 7, "loading") as advance:
        assert re.fullmatch(r"Restoring: 0 of 7, loading \d+ s\n", line())
        advance("2 workers")
        assert any(line().startswith("Restoring: 1 of 7, 2 workers") for _ in range(100_000))
    with progress_bar(console, "Restoring", 2_000_000, "loading", of="voxels") as advance:
        advance("1 worker", completed=500_000)
        assert any(line().startswith("Restoring: 25%, 1 worker") for _ in range(100_000))
        advance("1 worker", 1_000_000, 600_000)
        assert any(line().startswith("Restoring: 60%, 1 worker") for _ in range(100_000))


ROOT = Path(__file__).parents[2]


def read(terminal):
    """Output that has come to a terminal, b"" when no process has it open any more."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


@pytest.fixture
def on_a_terminal(tmp_path):
    """Run a command whose standard error is a terminal: (what came to that, what came to a pipe if one is wanted)."""

    def run(*arguments, piped, **environment):
        terminal, device = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "workflow", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"} | environment,
            stdout=subprocess.PIPE if piped else device,
            stderr=device,
        ) as process:
            os.close(device)
            shown = b"".join(iter(partial(read, terminal), b""))
            result = process.stdout.read() if process.stdout else b""
        os.close(terminal)
        return shown.decode(), result.decode()

    return run


def test_what_a_query_waits_for_is_shown_on_the_terminal_and_not_in_a_pipe(on_a_terminal, tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(9, 8, 7)), np.eye(4)), tmp_path / "a.nii")
    shown, result = on_a_terminal("inspect", "a.nii", piped=True)
    assert "Reading 1 volume …" in shown
    assert "9x8x7 at" in result
    assert "Reading" not in result
    absent = f"http://127.0.0.1:{unused_port()}"
    shown, _ = on_a_terminal("compare", piped=False, MLFLOW_TRACKING_URI=absent)
    assert 0 <= shown.find("Reading runs …") < shown.index("voxlift: Cannot read runs in the tracking store")


def test_work_that_is_stopped_names_the_command_that_resumes_it(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["/bin/voxlift", "upscale", "my scan.nii", "--resume"])
    with pytest.raises(KeyboardInterrupt), resumable(Console(width=20), lambda: "3 shard(s) are saved."):
        raise KeyboardInterrupt
    assert capsys.readouterr().out == (
        "Stopped. 3 shard(s) are saved. Resume with:\n  voxlift upscale 'my scan.nii' --resume\n"
    )
