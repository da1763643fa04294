"""The cluster file as Ray's launcher carries it out over ssh, on four machines in namespaces, without containers."""

import re
import secrets
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import unused_port
from tests.processes import until
from tests.workflow.small_upscaling import ROOT, SmallUpscaling, digests, report_in
from tests.workflow.ssh_machines import Machine, ssh_machines

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]
BIN = Path(sys.executable).parent
# Nodes share the ports and the memory of one machine.
SMALL = "--node-manager-port=0 --object-manager-port=0 --dashboard-agent-listen-port=0 --min-worker-port=0"
SMALL += " --max-worker-port=0 --object-store-memory=200000000 --node-ip-address=$(hostname -i)"


@dataclass(frozen=True)
class Launcher:
    """Ray's launcher on a machine that is none of the cluster.

    Args:
        laptop: That machine.
        nodes: The others; the first is the head.
        file: The cluster file.
        address: Of the cluster.
    """

    laptop: Machine
    nodes: list[Machine]
    file: Path
    address: str

    def ray(self, command: str, *arguments: str) -> str:
        """Run a command of the launcher; return what it prints."""
        words = [f"{BIN}/ray", command, str(self.file), *arguments]
        # As the cluster file says.
        done = self.laptop.run(f"RAY_UP_enable_autoscaler_v2=0 RAY_AUTH_MODE=token {shlex.join(words)}")
        assert done.returncode == 0, done.stdout
        return done.stdout


@pytest.fixture
def launcher(tmp_path):
    """The cluster file for three machines that have no containers, but Python."""
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(ROOT)}
    # A node that has lost its head looks for it for so many seconds; for 60 by itself.
    environment["RAY_gcs_rpc_server_reconnect_timeout_s"] = "5"
    text = (ROOT / "configs" / "cluster" / "ray-cluster.yaml").read_text()
    port, client, jobs = (str(unused_port()) for _ in range(3))
    text = re.sub(r"^( *)#(?=\S)", r"\1", text.replace("6379", port), flags=re.MULTILINE)
    config = yaml.safe_load(text.replace("/shared/voxlift/.venv/bin", str(BIN)))
    del config["docker"], config["initialization_commands"]
    with ssh_machines(tmp_path, 4, environment) as (laptop, *nodes):
        config["provider"] |= {"head_ip": nodes[0].address, "worker_ips": [node.address for node in nodes[1:]]}
        config["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/key"}
        head, worker = config["head_start_ray_commands"], config["worker_start_ray_commands"]
        ports = f"--ray-client-server-port={client} --dashboard-port={jobs}"
        head[-1] = head[-1].replace("ray start ", f"ray start --num-cpus=0 {ports} {SMALL} ")
        worker[-1] = worker[-1].replace("ray start ", f"ray start --num-cpus=1 {SMALL} ")
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
        laptop.run(f"mkdir -p ~/.ray && echo {secrets.token_hex(32)} > ~/.ray/auth_token")
        yield Launcher(laptop, nodes, tmp_path / "cluster.yaml", f"{nodes[0].address}:{port}")


def test_machines_are_started_lost_and_ended(launcher, tmp_path):
    work = SmallUpscaling(tmp_path, volumes=3, shape=(50, 60, 54)).prepare()
    expected = work.run_here("here", "--workers", "1")

    launcher.ray("up", "--yes")
    # The head starts the others, which have a CPU each.
    until(lambda: "0.0/2.0 CPU" in launcher.ray("exec", "ray status"), every=1)
    assert all(node.has("raylet") for node in launcher.nodes)
    lost = launcher.nodes[-1]
    command = shlex.join(["voxlift", *work.command("out", "--workers", "2")])
    environment = f"RAY_ADDRESS={launcher.address} MLFLOW_TRACKING_URI={work.store}"
    with ThreadPoolExecutor() as pool:
        running = pool.submit(launcher.ray, "exec", f"{environment} {command}")
        until(lambda: running.done() or (work.cores("out") + work.outputs("out") >= 2 and lost.has("ray::_")))
        lost.process.kill()
        assert digests(report_in(running.result())) == expected
    launcher.ray("down", "--yes")
    head, kept, _ = launcher.nodes
    until(lambda: not [*head.others(), *kept.others()])
