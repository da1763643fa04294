"""Find the nodes of the cluster that share a folder, before there is anything to lose."""

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from configs.errors import ConfigError
from tasks.files.atomic import partial_name
from tasks.machine.worker import WorkerError
from workflow.cluster.resources import Node, Request, inventory, require_room
from workflow.cluster.workers import fetch

EXPECTED = "seen"
ANSWER_SECONDS = 60.0
VISIBLE_SECONDS = 10.0  # NFS shows another machine's new file only when it looks at the folder again


def require_shared(
    folder: Path, request: Callable[[frozenset[str]], Request], warn: Callable[[str], object]
) -> Request:
    """Exclude the nodes that do not share a folder with this one, which makes it if it does not exist.

    Args:
        folder: Where each of both must read what the other writes.
        request: Makes the request of a worker in the folder, by the ids of the nodes to exclude.
        warn: Called for each excluded node with a message that names it.

    Raises:
        ConfigError: The nodes that share it have no room for the request; the message names one that does not.
    """
    problems = _problems(folder)
    made = request(frozenset(node.id for node in problems))
    for node, problem in problems.items():
        name = f"{node.name} ({node.address}, id {node.id})"
        try:
            require_room(1, made)
        except ConfigError as error:
            raise ConfigError(
                f"Cannot use the folder {folder.name} for the run: node {name} does not share it ({problem}).",
                "Put --out on storage that every node mounts at the same path.",
            ) from error
        warn(f"Node {name} is left out: it does not share the folder {folder.name} ({problem}).")
    return made


def _problems(folder: Path) -> dict[Node, str]:
    """Find the nodes that do not share a folder, and why."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / partial_name("probe")
    try:
        probe.touch()
        return {
            node: problem
            for node, answer in on_other_nodes(answer_probe, str(probe))
            if (problem := str(answer) if isinstance(answer, Exception) else _problem(Path(answer)))
        }
    finally:
        probe.unlink(missing_ok=True)


def on_other_nodes(function: Callable[[str], Any], argument: str) -> list[tuple[Node, Any]]:
    """Call a module-level function once on every node of the cluster but the driver's own.

    Returns:
        For each node what the function returned there, an exception where it raised or did not answer.
    """
    nodes = [node for node in inventory() if not node.here]
    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    strategies = (NodeAffinitySchedulingStrategy(node.id, soft=False) for node in nodes)
    calls = [remote.options(scheduling_strategy=strategy).remote(argument) for strategy in strategies]
    ready = set(ray.wait(calls, num_returns=len(calls), timeout=ANSWER_SECONDS)[0]) if calls else set()
    answers: list[Any] = []
    for call in calls:
        try:
            answers.append(fetch(call) if call in ready else WorkerError(f"no answer for {ANSWER_SECONDS:g} s"))
        except Exception as error:  # noqa: BLE001 - reported next to the node's name
            answers.append(error)
    return list(zip(nodes, answers, strict=True))


def answer_probe(probe: str) -> str:
    """Write an answer next to a probe, on another node; returns its path.

    Raises:
        OSError: The probe is not there, or nothing can be written next to it.
    """
    if not _in_time(Path(probe).is_file):
        raise FileNotFoundError("what the driver writes is not there")
    answer = f"{probe}-{secrets.token_hex(4)}"  # named after the driver, which removes it
    Path(answer).write_text(EXPECTED)
    return answer


def _problem(answer: Path) -> str:
    """Remove an answer; return why it is not the expected one, if it is not."""

    def is_expected() -> bool:
        with suppress(OSError):
            return answer.read_text() == EXPECTED
        return False

    seen = _in_time(is_expected)
    with suppress(OSError):
        answer.unlink()
    return "" if seen else "what it writes is not seen here"


def _in_time(holds: Callable[[], bool]) -> bool:
    """Wait for a condition, for as long as a file may take to be seen; return whether it holds."""
    deadline = time.monotonic() + VISIBLE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
