"""The check that nodes share a folder, on a real cluster of several nodes, with nodes that do not made by injection."""

import os
import signal
import threading
from pathlib import Path

import pytest

from configs.errors import ConfigError
from tasks.files.atomic import sweep_folders
from workflow.cluster import Request, shared_storage, stream
from workflow.cluster.resources import Node, inventory
from workflow.cluster.shared_storage import answer_probe, on_other_nodes, require_shared


def on_any(excluded):
    return Request(excluded=excluded)


def other(name, address):
    return Node(name * 56, name, address, 4, 0, 0, 0, here=False)


def test_a_folder_of_the_only_node_is_shared(ray_cluster, tmp_path):
    assert require_shared(tmp_path / "run", on_any, pytest.fail) == Request()
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
def test_the_node_that_does_not_share_is_named_and_left_out(ray_cluster, tmp_path, monkeypatch, answer, why):
    good, bad = other("a", "10.0.0.2"), other("b", "10.0.0.3")

    def answers(function, probe):
        assert Path(probe).is_file()
        return [(good, function(probe)), (bad, answer)]

    monkeypatch.setattr(shared_storage, "on_other_nodes", answers)
    monkeypatch.setattr(shared_storage, "VISIBLE_SECONDS", 0)
    warnings: list[str] = []
    request = require_shared(tmp_path / "run", on_any, warnings.append)
    assert request.excluded == {bad.id}
    named = f"b (10.0.0.3, id {bad.id})"
    assert len(warnings) == 1
    assert warnings[0].startswith(f"Node {named} is left out: it does not share the folder run (")
    assert why in warnings[0]
    assert list(stream(nothing, request=request)) == []  # placed on the node that is left
    assert list((tmp_path / "run").iterdir()) == []


def nothing():
    yield from ()


def test_a_folder_that_too_few_nodes_share_is_refused(ray_cluster, tmp_path, monkeypatch):
    bad, (here,) = other("b", "10.0.0.3"), inventory()
    monkeypatch.setattr(shared_storage, "on_other_nodes", lambda *_: [(bad, OSError("stale"))])
    named = r"the folder run for the run: node b \(10\.0\.0\.3, id b{56}\) does not share it \(stale\)"
    with pytest.raises(ConfigError, match=named):
        require_shared(tmp_path / "run", lambda excluded: Request(cpus=here.cpus + 1, excluded=excluded), pytest.fail)


def test_what_a_killed_driver_left_of_its_probe_is_removed(tmp_path, monkeypatch):
    def killed(function, probe):
        function(probe)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(shared_storage, "on_other_nodes", killed)
    child = os.fork()
    if child == 0:
        require_shared(tmp_path, on_any, pytest.fail)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    sweep_folders([tmp_path])
    assert not list(tmp_path.iterdir())
