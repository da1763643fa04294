"""A Ray cluster of one machine whose autoscaler adds nodes and removes idle ones."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from tests.conftest import unused_port
from tests.ray_nodes import OPEN, RayNodes, ray_nodes

ROOT = Path(__file__).parents[1]
MEMORY = 2 << 30  # of a node, in bytes, as the autoscaler counts


class Provider(FakeMultiNodeProvider):  # type: ignore[misc]
    """Ray's own for tests, which cannot start a node whose type has memory; the node finds its memory itself."""

    def _create_node_with_resources_and_labels(
        self, node_config: Any, tags: Any, count: int, resources: dict[str, Any], labels: Any
    ) -> None:
        own = {name: amount for name, amount in resources.items() if name != "memory"}
        super()._create_node_with_resources_and_labels(node_config, tags, count, own, labels)


@contextmanager
def growing_cluster(folder: Path, most: int) -> Iterator[RayNodes]:
    """Run a cluster with a head without CPUs and at most so many nodes of one CPU, which are removed when idle."""
    port = unused_port()
    provider: dict[str, Any] = {
        "type": "external",
        "module": f"{__name__}.Provider",
        "gcs_address": f"127.0.0.1:{port}",
    }
    # Nothing is installed on a node; Ray lacks the file with the defaults of its own provider.
    provider |= {"launch_multiple": True, "disable_node_updaters": True, "disable_launch_config_check": True}
    commands = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    config = {
        "cluster_name": "growing",
        "provider": provider,
        "max_workers": most,
        "idle_timeout_minutes": 0.1,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1, "memory": MEMORY}, "node_config": {}, "max_workers": most},
        },
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        **{f"{name}_commands": [] for name in commands},
    }
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(config))
    environment = {
        **OPEN,
        "PYTHONPATH": str(ROOT),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_NODE_TYPE_NAME": "ray.head.default",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    with ray_nodes(folder, f"--num-cpus=0 --autoscaling-config={file}", environment=environment, port=port) as cluster:
        yield cluster
