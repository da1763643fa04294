"""A pool of real workers, and a stream from one: order, limits, death, silence, errors."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from configs.errors import ConfigError, InputError
from tasks.machine.worker import WorkerDiedError, WorkerError
from tests.doubler import Doubler
from tests.processes import until
from workflow.cluster import RemoteWorker, Request, require_room, share, stream
from workflow.restore.worker_pool import Job, WorkerPool

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def pool(tmp_path):
    pools = []

    def start(workers=2, retries=2, patience=30.0, make=Doubler, request=Request(), at_once=None):  # noqa: B008 - frozen
        pools.append(
            WorkerPool(
                lambda: RemoteWorker(make, (str(tmp_path),), request),
                workers,
                retries=retries,
                patience=patience,
                at_once=at_once,
            )
        )
        return pools[-1]

    yield start
    for each in pools:
        each.shut_down()


def outcomes(pool, *jobs):
    return {outcome.key: outcome for outcome in pool.work(jobs)}


def test_every_job_is_done_once_and_few_are_taken_ahead(pool):
    taken = []

    def jobs():
        for number in range(12):
            taken.append(number)
            yield Job(number, (number,))

    ahead: list[int] = []
    done = {}
    for outcome in pool(2).work(jobs()):
        ahead.append(len(taken) - len(ahead))
        done[outcome.key] = outcome.value
    assert done == {number: 2 * number for number in range(12)}
    assert max(ahead) <= 2 * WorkerPool.AHEAD


def test_what_was_shared_arrives_as_its_value(pool):
    assert outcomes(pool(1), Job("shared", (share(21),)))["shared"].value == 42


def test_no_jobs(pool):
    assert outcomes(pool(1)) == {}


def test_a_killed_worker_is_replaced_and_its_job_tried_again(pool):
    done = outcomes(pool(1), *(Job(n, (n, "die", 2 if n == 0 else 0)) for n in range(4)))
    assert {key: outcome.value for key, outcome in done.items()} == {0: 0, 1: 2, 2: 4, 3: 6}
    # Two deaths, two tries more; one may count for the job before, whose answer died with the process on its way.
    assert sum(outcome.retries for outcome in done.values()) == 2


def test_a_job_that_kills_every_worker_fails_alone(pool):
    done = outcomes(pool(1, retries=1), Job(1, (1, "die", 9)), Job(2, (2,)))
    assert isinstance(done[1].error, WorkerDiedError)
    assert done[1].retries == 1
    assert done[2].value == 4


@pytest.mark.parametrize("fate", ["hang", "freeze"])
def test_a_worker_that_does_not_answer_is_replaced(pool, fate):
    started = time.monotonic()
    done = outcomes(pool(1, patience=4.0, retries=9), Job(1, (1, fate, 1)), Job(2, (2,)))
    assert (done[1].value, done[1].retries) == (2, 1)
    assert done[2].value == 4
    assert time.monotonic() - started < 30


def test_wrong_input_is_not_tried_again_and_other_failures_are(pool):
    done = outcomes(pool(1), Job(1, (1, "refuse", 9)), Job(2, (2, "break", 1)), Job(3, (3, "break", 9)))
    assert isinstance(done[1].error, InputError)
    assert str(done[1].error) == "Cannot double 1."
    assert (done[1].retries, done[2].value, done[2].retries) == (0, 4, 1)
    assert str(done[3].error) == "KeyError: 3"


def test_a_job_that_outgrows_the_memory_of_every_worker_fails_alone(pool):
    done = outcomes(pool(1, retries=1), Job(1, (1, "outgrow", 1)), Job(2, (2, "outgrow", 9)), Job(3, (3,)))
    assert (done[1].value, done[1].retries) == (2, 1)
    assert isinstance(done[2].error, MemoryError)
    assert (done[2].retries, done[3].value) == (1, 6)


class Poisoned:
    """Runs out of memory once, and from then on at every call: a process that is no good any more."""

    def __init__(self, folder):
        self.mark, self.poisoned = Path(folder) / "poisoned", False

    def __call__(self, number):
        if number == 1 and not self.mark.exists():
            self.mark.touch()
            self.poisoned = True
        return len(bytearray(1 << 60 if self.poisoned else number))


def test_what_failed_is_tried_again_in_another_process(pool):
    done = outcomes(pool(1, retries=1, make=Poisoned), *(Job(number, (number,)) for number in range(5)))
    assert {key: (outcome.value, outcome.retries) for key, outcome in done.items()} == {
        number: (number, int(number == 1)) for number in range(5)
    }


class Recorder:
    """Returns its process; the first call in each ends when so many have begun."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self, workers):
        (self.folder / str(os.getpid())).touch()
        while len(list(self.folder.iterdir())) < workers:
            time.sleep(0.01)
        return os.getpid()


def run_of(count, lead, first=1.0, workers=1):
    return [Job(number, (workers,), count - 1 - number, 1.0 if number else first, lead=lead) for number in range(count)]


@pytest.mark.parametrize(
    ("workers", "first", "lead", "begin_at"),
    [(2, 1, 1, [0, 5]), (2, 5, 0, [0, 2]), (2, 1, 7, [0]), (3, 1, 0.5, [0, 3, 6]), (4, 1, 0, [0, 2, 4, 6])],
)
def test_workers_that_are_free_share_a_run_by_what_it_takes(pool, workers, first, lead, begin_at):
    takers: dict[int, list[int]] = {}
    for outcome in pool(workers, make=Recorder).work(run_of(8, lead, first, len(begin_at))):
        takers.setdefault(outcome.value, []).append(outcome.key)
    assert sorted(taken[0] for taken in takers.values()) == begin_at
    assert sorted(key for taken in takers.values() for key in taken) == list(range(8))


def test_a_run_goes_on_after_its_worker_has_died(pool):
    jobs = [Job(number, (number,), 5 - number, lead=1) for number in range(6)]
    jobs[2] = Job(2, (2, "die", 1), 3, lead=1)
    assert {outcome.key: outcome.value for outcome in pool(1).work(jobs)} == {n: 2 * n for n in range(6)}


def test_what_nobody_waits_for_any_more_is_dropped(pool):
    wanted = [True, False, True]
    jobs = [Job(number, (number,), 2 - number, wanted=partial(wanted.__getitem__, number)) for number in range(3)]
    assert [outcome.key for outcome in pool(1).work(jobs)] == [0, 2]


class Latecomer:
    """The second one is there once the first has begun; each call ends when the other's has begun."""

    def __init__(self, folder):
        self.folder = Path(folder)
        try:
            (self.folder / "first").mkdir()
        except FileExistsError:
            self.wait_for("0", "1")

    def __call__(self, number):
        (self.folder / str(number)).touch()
        self.wait_for(str(1 - number))

    def wait_for(self, *names):
        while not any((self.folder / name).exists() for name in names):
            time.sleep(0.01)


def test_a_worker_that_still_loads_finds_work(pool):
    done = outcomes(pool(2, retries=0, patience=60.0, make=Latecomer), Job(0, (0,)), Job(1, (1,)))
    assert [done[number].error for number in (0, 1)] == [None, None]


def test_a_worker_without_a_place_delays_nobody(pool):
    one_of_two = pool(2, request=Request(cpus=3), at_once=1, patience=60.0)  # of 4 CPUs
    one_of_two.wait_for_place()
    done = outcomes(one_of_two, *(Job(number, (number,)) for number in range(6)))
    assert {key: outcome.value for key, outcome in done.items()} == {number: 2 * number for number in range(6)}
    assert one_of_two.alive == 1


def test_a_cluster_that_never_makes_room_ends_the_work(pool):
    nowhere = pool(1, request=Request(cpus=5), retries=0, patience=1.0)
    problem = r"^Cannot start a worker: the cluster had no room for the worker for 1 s\.$"
    with pytest.raises(WorkerError, match=problem):
        nowhere.wait_for_place()


class Refuser:
    def __init__(self, _):
        raise InputError("Cannot load the model head.keras.")


class FullDisk:
    """Cannot be made the first so many times."""

    times = 1

    def __init__(self, folder):
        marks = len(list(Path(folder).glob("full-*")))
        if marks < self.times:
            (Path(folder) / f"full-{marks}").touch()
            raise OSError("No space left on device")

    def __call__(self, number):
        return number


class EverFullDisk(FullDisk):
    times = 9


def test_a_worker_that_fails_at_the_start_is_replaced(pool):
    assert outcomes(pool(1, make=FullDisk), Job(1, (1,)))[1].value == 1
    with pytest.raises(WorkerError, match=r"^Cannot start a worker: OSError: No space left on device\.$"):
        outcomes(pool(1, make=EverFullDisk), Job(1, (1,)))


class FirstOnly:
    """The first is made at once; the next three cannot be, once it works. It waits for them, and then dies once."""

    def __init__(self, folder):
        self.folder = Path(folder)
        for number in range(9):
            with suppress(FileExistsError):
                (self.folder / f"start-{number}").mkdir()
                break
        if 0 < number <= 3:
            self.wait_for("called")
            raise self.error

    error: Exception = OSError("No space left on device")

    def __call__(self, number):
        (self.folder / "called").touch()
        self.wait_for("start-3")
        if number == 1 and not (self.folder / "ended").exists():
            (self.folder / "ended").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    def wait_for(self, name):
        while not (self.folder / name).exists():
            time.sleep(0.01)


class FirstOnlyAccepts(FirstOnly):
    error = InputError("Cannot load the model head.keras.")


@pytest.mark.parametrize("make", [FirstOnly, FirstOnlyAccepts])
def test_a_worker_that_cannot_start_three_times_does_not_end_the_others(pool, make):
    done = outcomes(pool(2, retries=2, make=make), *(Job(number, (number,)) for number in range(6)))
    assert {key: outcome.value for key, outcome in done.items()} == {number: number for number in range(6)}


class Dier:
    def __init__(self, _):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_tool_that_cannot_be_made_is_the_error(pool):
    with pytest.raises(InputError, match=r"^Cannot load the model head\.keras\.$"):
        outcomes(pool(make=Refuser), Job(1, (1,)))


def test_workers_that_die_at_the_start_end_the_work(pool):
    with pytest.raises(WorkerError, match="Cannot start a worker"):
        outcomes(pool(1, retries=1, make=Dier), Job(1, (1,)))


def test_what_cannot_be_placed_is_refused_before_it_is_asked_for():
    has = "the cluster has 4 CPUs and 0 GPUs on 1 node, room for 2"
    with pytest.raises(ConfigError, match=f"3 workers of 2 CPUs and 0 GPUs each: {has}"):
        require_room(3, Request(cpus=2))
    with pytest.raises(ConfigError, match="room for 0"):
        next(stream(count_to, 1, request=Request(gpus=1)))
    with pytest.raises(ConfigError, match=r"1 worker of 1 CPU, 0 GPUs and 99000000 MiB each: .* \d+ MiB on 1 node"):
        require_room(1, Request(memory_mib=99_000_000))


def test_a_cluster_that_does_not_answer_is_reported_at_once(free_port):
    script = "from workflow.cluster import cluster\nwith cluster(): pass"
    for address in (f"127.0.0.1:{free_port}", "nowhere"):
        environment = {**os.environ, "RAY_ADDRESS": address}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        said = done.stderr.splitlines()[-1]
        assert said.startswith("configs.errors.ConfigError: Cannot join the Ray cluster at " + address)


def count_to(number):
    yield os.environ["CUDA_VISIBLE_DEVICES"]
    yield from range(number)


def refuse_after(number):
    yield from range(number)
    raise InputError("Cannot go on.")


def die_after(number):
    yield from range(number)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_stream_yields_what_the_function_yields_with_gpus_hidden():
    assert list(stream(count_to, 3, request=Request())) == ["-1", 0, 1, 2]


def test_errors_and_death_come_out_of_a_stream():
    reported: list[int] = []
    with pytest.raises(InputError, match=r"^Cannot go on\.$"):
        reported.extend(stream(refuse_after, 2, request=Request()))
    with pytest.raises(WorkerDiedError):
        list(stream(die_after, 2, request=Request()))


def test_a_stream_that_nobody_listens_to_ends(tmp_path):
    records = stream(write_forever, str(tmp_path / "log"), request=Request())
    process = next(records)
    records.close()
    until(lambda: not Path(f"/proc/{process}").exists(), seconds=20)


def test_a_process_that_does_not_end_after_its_last_record_is_ended(tmp_path):
    began = time.monotonic()
    (process,) = stream(write_forever, str(tmp_path / "log"), request=Request(), last=int)
    until(lambda: not Path(f"/proc/{process}").exists(), seconds=20)
    assert time.monotonic() - began < 40


def write_forever(path):
    yield os.getpid()
    signal.pause()


def test_a_stream_with_grace_lets_the_function_end_by_itself(tmp_path):
    place = tmp_path / "last"
    records = stream(count_until_told, str(place), request=Request(), grace=20.0)
    assert [next(records), next(records)] == [0, 1]
    records.close()
    assert int(place.read_text()) >= 2


def count_until_told(path, should_stop):
    number = 0
    while not should_stop():
        yield number
        number += 1
        time.sleep(0.01)
    Path(path).write_text(str(number))


def test_a_stream_with_grace_that_does_not_end_by_itself_is_ended():
    records = stream(deaf, request=Request(), grace=1.0)
    process = next(records)
    records.close()
    until(lambda: not Path(f"/proc/{process}").exists(), seconds=20)


def deaf(should_stop):
    yield os.getpid()
    while True:
        signal.pause()


def test_a_worker_enters_the_tracking_store_as_the_driver_does(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a token of the test")
    assert list(stream(credentials, request=Request())) == ["a token of the test"]


def credentials():
    yield os.environ["MLFLOW_TRACKING_TOKEN"]
