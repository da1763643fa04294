"""The check that nodes share a folder, on a real cluster of several nodes, with nodes that do not made by injection."""

import os
import signal
import threading
from pathlib import Path

import pytest

from configs.errors import ConfigError
from tasks.files.atomic import sweep_folders
from workflow.cluster import shared_storage
from workflow.cluster.shared_storage import answer_probe, on_other_nodes, require_shared


def test_a_folder_of_the_only_node_is_shared(ray_cluster, tmp_path):
    require_shared(tmp_path / "run")
    assert on_other_nodes(answer_probe, "probe") == []
    assert list((tmp_path / "run").iterdir()) == []


def test_a_probe_is_answered_next_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_storage, "VISIBLE_SECONDS", 0)
    probe = tmp_path / "probe"
    probe.touch()
    answer = Path(answer_probe(str(probe)))
    assert answer.parent == tmp_path
    assert answer.read_text() == shared_storage.EXPECTED
    with pytest.raises(FileNotFoundError, match="what the driver writes is not there"):
        answer_probe(str(tmp_path / "elsewhere"))


def test_a_file_that_appears_late_is_waited_for(tmp_path):
    """As on NFS, where a folder that was looked at is not looked at again for some time."""
    probe = tmp_path / "probe"
    later = threading.Timer(0.5, probe.touch)
    later.start()
    assert Path(answer_probe(str(probe))).read_text() == shared_storage.EXPECTED
    later.join()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (FileNotFoundError("what the driver writes is not there"), "what the driver writes is not there"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        ("nowhere", "what it writes is not seen here"),
    ],
)
def test_the_node_that_does_not_share_is_named(tmp_path, monkeypatch, answer, why):
    def answers(function, probe):
        assert Path(probe).is_file()
        return [("good (10.0.0.2)", function(probe)), ("bad (10.0.0.3)", answer)]

    monkeypatch.setattr(shared_storage, "on_other_nodes", answers)
    monkeypatch.setattr(shared_storage, "VISIBLE_SECONDS", 0)
    with pytest.raises(ConfigError, match=rf"the folder run for the run: node bad \(10\.0\.0\.3\) .*{why}"):
        require_shared(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_what_a_killed_driver_left_of_its_probe_is_removed(tmp_path, monkeypatch):
    def killed(function, probe):
        function(probe)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(shared_storage, "on_other_nodes", killed)
    child = os.fork()
    if child == 0:
        require_shared(tmp_path)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    sweep_folders([tmp_path])
    assert not list(tmp_path.iterdir())
