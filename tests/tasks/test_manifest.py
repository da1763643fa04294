"""The manifest of a folder into which several runs write at once."""

import pytest

from configs.errors import ContractsError
from tasks.artifacts import manifest
from tasks.artifacts.manifest import CONTRACTS_FILE, collect_entries, manifest_entry, note_entries, read_contracts


def noted(folder, name, run_id):
    """Write a file and note its entry, as a run does with each output."""
    (folder / name).write_text(name)
    note_entries(folder, {folder / name: manifest_entry(folder / name)}, run_id)


def test_what_a_killed_run_has_noted_is_under_contract(tmp_path):
    noted(tmp_path, "one", "first")
    assert not (tmp_path / CONTRACTS_FILE).exists()
    assert read_contracts(tmp_path).problems(tmp_path, alone=False) == {}
    (tmp_path / "one").write_text("two")
    assert set(read_contracts(tmp_path).problems(tmp_path, alone=False)) == {"one"}


def test_a_name_that_is_longer_than_any_file_can_have_is_that_of_no_file(tmp_path):
    noted(tmp_path, "one", "first")
    (part,) = tmp_path.glob(".voxlift/*.manifest")
    part.write_text(part.read_text().replace('"one"', f'"{"a" * 5000}"'))
    assert read_contracts(tmp_path).seals == {}
    (tmp_path / CONTRACTS_FILE).write_text(part.read_text())
    assert read_contracts(tmp_path).problems(tmp_path, alone=False) == {"a" * 5000: ["it does not exist"]}
    collect_entries(tmp_path, "second")
    assert read_contracts(tmp_path).seals == {}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_runs_that_collect_at_once_lose_no_entry(tmp_path, monkeypatch, moment):
    write = manifest.write_contracts

    def other_run(*given):
        monkeypatch.setattr(manifest, "write_contracts", write)
        if moment == "after":
            write(*given)
        noted(tmp_path, "two", "second")
        collect_entries(tmp_path, "second")
        if moment == "before":
            write(*given)

    noted(tmp_path, "one", "first")
    monkeypatch.setattr(manifest, "write_contracts", other_run)
    collect_entries(tmp_path, "first")
    for part in (tmp_path / ".voxlift").iterdir():
        part.unlink()
    assert set(read_contracts(tmp_path).seals) == {"one", "two"}


def test_a_file_that_was_removed_is_missed_until_the_next_run(tmp_path):
    for name in ("one", "two"):
        noted(tmp_path, name, "first")
    collect_entries(tmp_path, "first")
    (tmp_path / "one").unlink()
    assert read_contracts(tmp_path).problems(tmp_path, alone=False) == {"one": ["it does not exist"]}
    collect_entries(tmp_path, "second")
    assert set(read_contracts(tmp_path).seals) == {"two"}


def test_a_damaged_manifest_is_reported_and_written_again(tmp_path):
    noted(tmp_path, "one", "first")
    (tmp_path / CONTRACTS_FILE).write_text("")
    with pytest.raises(ContractsError, match="it holds no contracts"):
        read_contracts(tmp_path)
    collect_entries(tmp_path, "first")
    assert set(read_contracts(tmp_path).seals) == {"one"}
