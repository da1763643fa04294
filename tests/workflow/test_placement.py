"""The placement of a restoration, one worker for each GPU where there are any, and the CPUs of a training."""

import os
from collections import deque

import pynvml
import pytest

from configs.load import load_config
from configs.schema import Resources
from tasks.machine import cpus
from tasks.machine.gpus import Card, cards
from workflow.cluster.resources import Node, drawing_processes, training_request
from workflow.restore import placement
from workflow.restore.placement import Given, placed
from workflow.restore.processes import ProcessWorker, fetch, first_answers

DEFAULT = Resources(cpus_per_worker=1)
TWO = (Card("GPU-a", 80_000), Card("GPU-b", 70_000))


@pytest.fixture
def machine(monkeypatch):
    """Make this a machine of eight CPUs with the given GPUs."""

    def have(found):
        monkeypatch.setattr(placement, "cards", lambda: found)
        monkeypatch.setattr("workflow.restore.processes.usable_cpus", lambda: 8)

    return have


@pytest.mark.parametrize(
    ("found", "given", "place", "expected"),
    [
        ((), Given(), "processes", (2, 4, 0, 2000)),
        (TWO, Given(), "processes", (2, 4, 1, 32768)),
        (TWO[:1], Given(), "processes", (1, 8, 1, 32768)),
        (TWO[:1], Given(budget_mib=3000, threads=3), "processes", (1, 3, 1, 3000)),
        (TWO, Given(gpus=0), "processes", (2, 4, 0, 2000)),
        (TWO, Given(workers=2), "cluster", (2, 1, 1, 2000)),
        (TWO, Given(workers=3), "cluster", (3, 1, 0, 2000)),
        (TWO, Given(workers=2, gpus=0), "cluster", (2, 1, 0, 2000)),
        (TWO, Given(gpus=2), "cluster", (2, 1, 2, 2000)),
    ],
)
def test_gpus_of_this_machine_are_used_unless_it_is_asked_otherwise(machine, found, given, place, expected):
    machine(found)
    resources = DEFAULT.model_copy(
        update={"workers": given.workers or 2, "memory_budget_mib": given.budget_mib or 2000}
    )
    chosen, resources = placed(resources, given)
    seen = resources.workers, resources.cpus_per_worker, resources.gpus_per_worker, resources.memory_budget_mib
    assert (chosen, seen) == (place, expected)


def node(cpus, gpus, memory_mib=64_000, free_cpus=None):
    free = cpus if free_cpus is None else free_cpus
    return Node("id", "name", "address", cpus, gpus, memory_mib << 20, 0, here=False, free_cpus=free)


HEAD, TWO_GPUS, SMALL, LARGE = node(1, 0), node(16, 2), node(3, 0), node(9, 0)


@pytest.mark.parametrize(
    ("nodes", "given", "expected"),
    [
        ([HEAD, TWO_GPUS], Given(), (2, 4, 1)),
        ([HEAD, TWO_GPUS, node(4, 4)], Given(), (6, 1, 1)),
        ([TWO_GPUS, node(2, 1)], Given(threads=2), (3, 2, 1)),
        ([HEAD, TWO_GPUS], Given(gpus=0), (17, 1, 0)),
        ([HEAD, TWO_GPUS], Given(gpus=2), (1, 4, 2)),
        ([HEAD, TWO_GPUS], Given(workers=2), (2, 1, 1)),
        ([HEAD, TWO_GPUS], Given(workers=3), (3, 1, 0)),
        ([HEAD, TWO_GPUS], Given(workers=3, gpus=1), (3, 1, 1)),
        ([HEAD, SMALL, LARGE], Given(), (13, 1, 0)),
        ([HEAD, SMALL, LARGE], Given(threads=3), (4, 3, 0)),
        ([node(8, 0, memory_mib=5000)], Given(), (2, 1, 0)),
        ([LARGE] * 100, Given(), (256, 1, 0)),
        ([node(0, 0)], Given(), (2, 1, 0)),  # which may grow
        ([HEAD], Given(gpus=1), (2, 1, 1)),
    ],
)
def test_a_cluster_has_a_worker_for_each_gpu_or_by_its_cpus(machine, nodes, given, expected):
    machine(TWO)  # GPUs of this machine are not those of the cluster
    asked = DEFAULT.model_copy(update={"workers": given.workers or 2, "cpus_per_worker": given.threads or 1})
    place, found = placed(asked, given, nodes)
    assert (place, found.workers, found.cpus_per_worker, found.gpus_per_worker) == ("cluster", *expected)


@pytest.mark.parametrize(
    ("nodes", "rules", "expected"),
    [
        ([HEAD, LARGE], [], (2, 0, 1)),
        ([HEAD, LARGE], ["training.steps=99"], (2, 0, 0)),
        ([HEAD, TWO_GPUS], [], (16, 2, 15)),
        ([HEAD, TWO_GPUS], ["training.replicas=1"], (8, 1, 7)),
        ([HEAD, TWO_GPUS], ["resources.cpus_per_worker=12"], (24, 2, 23)),
        ([TWO_GPUS, node(8, 2)], [], (8, 2, 7)),
        ([node(16, 2, free_cpus=5)], ["training.replicas=1"], (5, 1, 4)),
        ([node(16, 2, free_cpus=0)], [], (2, 2, 1)),
    ],
)
def test_a_training_has_the_cpus_that_go_with_its_gpus_to_draw_patches(monkeypatch, nodes, rules, expected):
    monkeypatch.setattr("workflow.cluster.resources.inventory", lambda: nodes)
    config = load_config("demo", rules)
    request = training_request(config)
    assert (request.cpus, request.gpus, drawing_processes(request, config.training.steps)) == expected


class Driver:
    """A driver that lists three cards, of which it cannot reach the second."""

    def __init__(self, monkeypatch):
        memory = type("Memory", (), {"free": 5 << 30})
        lost = pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

        def handle(number):
            if number == 1:
                raise lost
            return number

        for name, function in {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: 3,
            "nvmlDeviceGetHandleByIndex": handle,
            "nvmlDeviceGetUUID": "GPU-{}".format,
            "nvmlDeviceGetMemoryInfo": lambda _: memory,
        }.items():
            monkeypatch.setattr(pynvml, name, function)


def test_the_driver_is_asked_and_hidden_gpus_are_left_out(monkeypatch):
    Driver(monkeypatch)
    assert cards({}) == (Card("GPU-0", 5120), Card("GPU-2", 5120))
    assert cards({"CUDA_VISIBLE_DEVICES": "2"}) == (Card("GPU-2", 5120),)
    assert cards({"CUDA_VISIBLE_DEVICES": "1,2"}) == ()  # CUDA stops at the first that it cannot use


def test_a_machine_without_a_driver_has_no_gpus():
    assert cards({}) == ()


class Seen:
    """Returns the GPUs that its process sees."""

    def __call__(self, _):
        return os.environ["CUDA_VISIBLE_DEVICES"]


def seen_by(worker):
    answers = [worker.loading, worker.call((0,))]
    for answer in answers:
        while answer not in first_answers([answer], 60):
            pass
    return fetch(answers[1])


def test_a_process_has_a_gpu_of_its_own_and_gives_it_back():
    free = deque(["GPU-a", "GPU-b"])
    one, other = (ProcessWorker(Seen, (), free) for _ in range(2))
    try:
        assert (seen_by(one), seen_by(other), list(free)) == ("GPU-a", "GPU-b", [])
        one.end()
        assert list(free) == ["GPU-a"]
        one = ProcessWorker(Seen, (), free)
        assert seen_by(one) == "GPU-a"
    finally:
        one.end()
        other.end()


def test_a_process_without_a_gpu_sees_none():
    worker = ProcessWorker(Seen, ())
    try:
        assert seen_by(worker) == "-1"
    finally:
        worker.end()


def test_the_cpus_of_this_machine_are_those_of_before():
    _, resources = placed(DEFAULT, Given())
    assert resources.workers * resources.cpus_per_worker <= cpus.usable_cpus()
    assert resources.gpus_per_worker == 0
