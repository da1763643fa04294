"""The placement of a restoration: one worker for each GPU where there are any, and CPU workers as before without."""

import os
from collections import deque

import pynvml
import pytest

from configs.schema import Resources
from tasks.machine import cpus
from tasks.machine.gpus import Card, cards
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
    chosen, resources = placed(resources, given, joins=False)
    seen = resources.workers, resources.cpus_per_worker, resources.gpus_per_worker, resources.memory_budget_mib
    assert (chosen, seen) == (place, expected)


def test_a_cluster_to_join_gives_what_is_asked_for(machine):
    machine(TWO)
    assert placed(DEFAULT, Given(), joins=True) == ("cluster", DEFAULT)
    asked = DEFAULT.model_copy(update={"gpus_per_worker": 1})
    assert placed(DEFAULT, Given(gpus=1), joins=True) == ("cluster", asked)


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
    _, resources = placed(DEFAULT, Given(), joins=False)
    assert resources.workers * resources.cpus_per_worker <= cpus.usable_cpus()
    assert resources.gpus_per_worker == 0
