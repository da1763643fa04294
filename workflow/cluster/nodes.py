"""The nodes of the cluster, each asked by itself."""

from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workflow.cluster.workers import WorkerError, fetch


def on_other_nodes(
    function: Callable[..., Any],
    *arguments: Any,  # noqa: ANN401 - whatever the function takes
    seconds: float = 60.0,
) -> list[tuple[str, Any]]:
    """Call a function once on every node of the cluster but the driver's own.

    Args:
        function: A module-level function.
        arguments: Of the function.
        seconds: Until a node that has not answered is given up.

    Returns:
        For each node its name and what the function returned there, an exception where it raised or did not answer.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    asked = [_on(node["NodeID"], function).remote(*arguments) for node in nodes]
    ready = set(ray.wait(asked, num_returns=len(asked), timeout=seconds)[0]) if asked else set()
    names = [f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in nodes]
    return [
        (name, _answer(answer) if answer in ready else WorkerError(f"no answer for {seconds:g} s"))
        for name, answer in zip(names, asked, strict=True)
    ]


def _on(node_id: str, function: Callable[..., Any]) -> Any:  # noqa: ANN401 - a remote function of Ray
    here_alone = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here_alone)(function)


def _answer(answer: "ray.ObjectRef") -> Any:  # noqa: ANN401 - whatever the function returned
    try:
        return fetch(answer)
    except Exception as error:  # noqa: BLE001 - reported next to the node's name
        return error
