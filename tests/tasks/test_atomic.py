"""Files that appear whole, and one writer at a time."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.errors import InputError, RunError
from tasks.files.atomic import replacing, sweep, sweep_folders
from tasks.files.lock import locked
from tests.processes import full_disk

ROOT = Path(__file__).parents[2]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, events, fsync = tmp_path / "run.json", [], os.fsync

    def recorded(descriptor):
        events.append((Path(f"/proc/self/fd/{descriptor}").readlink().name.split(".")[-1], path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    with replacing(path) as partial:
        partial.write_text("{}")
    assert events == [("json", False), (tmp_path.name, True)]
    assert path.read_text() == "{}"


def test_writers_of_one_file_have_names_of_their_own(tmp_path):
    path = tmp_path / ("x" * 236)  # the longest name that an output and its pages get
    with replacing(path) as one, replacing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "one"


def test_what_a_killed_writer_left_is_removed(tmp_path):
    path = tmp_path / "scan.nii"
    with pytest.raises(FileNotFoundError), replacing(path) as partial:
        partial.write_text("half")
        left = partial.rename(tmp_path / partial.name.replace("partial", "partial.partial"))
    assert left.exists()
    sweep(path)
    assert not left.exists()


KILLED = """
import os, sys
from pathlib import Path
from tasks.files.atomic import replacing
with replacing(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    for name in ("scan_sr.json", "contracts.json"):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], cwd=ROOT, check=False)
    with replacing(tmp_path / "scan_sr.json") as partial:
        partial.write_text("of a process that lives")
        (tmp_path / ".of.somebody.partial.else").touch()
        assert len(list(tmp_path.iterdir())) == 4
        sweep_folders([tmp_path, tmp_path / "none"])
        assert len(list(tmp_path.iterdir())) == 2
    assert (tmp_path / "scan_sr.json").read_text() == "of a process that lives"


HOLDER = """
import sys
from pathlib import Path
from tasks.files.lock import locked
with locked(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def refused(path, message):
    with pytest.raises(InputError, match=message) as error, locked(path, "the run in here"):
        pass
    assert str(path) in error.value.remedy


def test_a_lock_is_held_by_one_process_until_it_ends(tmp_path, holder):
    path = tmp_path / "lock"
    refused(path, rf"Cannot write the run in here: another run writes it, process {holder.pid} on .*, which began 0:")
    holder.communicate("")
    assert holder.returncode == 0
    assert not path.exists()
    with locked(path, "the run in here"):
        refused(path, f"process {os.getpid()} on")
    assert not path.exists()


def test_a_file_in_place_of_the_folder_of_locks_is_named(tmp_path):
    (tmp_path / ".voxlift").touch()
    message = r"Cannot write it: \.voxlift is a file, and a folder of that name is needed\."
    with pytest.raises(InputError, match=message), locked(tmp_path / ".voxlift" / "it.lock", "it"):
        pass


def test_the_lock_of_a_killed_process_is_taken_over_and_lost_to_who_works_on(tmp_path, holder):
    path = tmp_path / "lock"
    with locked(tmp_path / "other", "it") as orphaned:
        pass
    with pytest.raises(RunError, match="another run has taken it over"):
        orphaned.require_held()
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and the system still lists it
    with locked(path, "it") as lock:
        lock.require_held()


@pytest.mark.parametrize(
    ("change", "is_stale"),
    [
        ({"start": "1"}, True),  # the process id is used again
        ({"boot": "before the power cut"}, True),
        ({"machine": "other"}, False),
        ({"container": "pid:[1]", "start": "1"}, False),
        ({"container": "pid:[1]", "boot": "of another machine of that name"}, False),
        (None, False),
    ],
)
def test_only_who_is_known_to_have_ended_loses_a_lock(tmp_path, change, is_stale):
    path = tmp_path / "lock"
    with locked(path, "it"):
        known = json.loads(path.read_text())
    path.write_text("" if change is None else json.dumps(known | change))
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    if is_stale:
        with locked(path, "it"):
            pass
        assert not path.exists()
    else:
        refused(path, "which began 2:00:0. ago")


def test_a_refused_run_leaves_no_folders(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "runs" / "first" / "lock", "it"):
        raise ZeroDivisionError
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_hold_a_lock_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write it: "), locked(tmp_path / "file" / "lock", "it"):
        pass


def test_a_full_disk_leaves_no_lock_without_a_holder(tmp_path):
    path = tmp_path / "runs" / "lock"
    with full_disk(0), pytest.raises(InputError, match="Cannot write it: File too large"), locked(path, "it"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_fit_is_named_and_leaves_nothing(tmp_path):
    path = tmp_path / "page.html"
    with full_disk(10), pytest.raises(OSError, match="File too large") as failed, replacing(path) as partial:
        partial.write_text("more than ten bytes")
    assert failed.value.filename == str(path)
    assert not list(tmp_path.iterdir())
