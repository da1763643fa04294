"""A pool of workers: jobs go to free workers; one that dies, is silent or fails is replaced, its job tried again.

It begins with the workers for which the cluster has room. The others wait for theirs and take part once they have it:
the pool grows and shrinks with the cluster.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Protocol

from tasks.machine.worker import WorkerError
from workflow import cluster


class StartError(WorkerError):
    """No worker that can be kept alive, in as many tries as there may be."""


@dataclass(frozen=True)
class Job:
    """One call of the workers' tool.

    Args:
        key: Identifies the job to the caller.
        arguments: Of the call; what was shared arrives as its value.
        following: How many jobs come right after it that a worker does with less work after this one, in their order.
        work: What the job takes, after the one that it follows.
        lead: What it takes in addition to begin with it instead, in the same unit.
        wanted: Returns False once nobody waits for the job: it is dropped if no worker has it yet.
    """

    key: Any
    arguments: tuple[Any, ...]
    following: int = 0
    work: float = 1
    lead: float = 0
    wanted: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job.

    Args:
        key: That of the job.
        value: What the tool returned, if it did.
        error: Why the job failed for good, if it did.
        retries: How often it was tried again.
    """

    key: Any
    value: Any = None
    error: Exception | None = None
    retries: int = 0


class Worker(Protocol):
    """A worker process with a tool.

    Attributes:
        placing: The answer that the process is there; None where it always is.
        loading: The answer that the tool is made.
    """

    placing: Any
    loading: Any

    def call(self, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401 - an answer
        """Call the tool; returns the answer to come."""

    def end(self) -> None:
        """End the process at once."""


@dataclass(eq=False)
class WorkerState:
    """A worker process as the driver sees it, with the jobs given to it, of which it works on the first, and its run.

    A run are jobs that it is given in order, as far as no other worker takes of them.
    """

    worker: Worker
    placed: bool = field(init=False)
    loaded: bool = False
    since: float = field(default_factory=time.monotonic)
    given: deque[tuple[Any, Job, int]] = field(default_factory=deque)
    run: deque[Job] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.placed = self.worker.placing is None

    @property
    def awaited(self) -> Any:  # noqa: ANN401 - an answer of the cluster
        """The answer that it will give next, None if it is idle."""
        if not self.placed:
            return self.worker.placing
        if not self.loaded:
            return self.worker.loading
        return self.given[0][0] if self.given else None


class WorkerPool:
    """Workers that each hold a tool and take jobs as they become free.

    Args:
        start: Starts a worker.
        workers: How many.
        retries: How often a job is tried again after the worker died, did not answer, or failed other than by wrong
            input.
        patience: Seconds after which a worker that does not answer is replaced; one that has no place in the cluster
            yet may take longer while others work.
        at_once: How many of the workers have a place when they are started; all by default.
        first_answers: Waits until one of some answers is there, or for so many seconds; returns those that are.
        fetch: Returns the value of an answer that is there, or raises. Both are those of the cluster by default.
    """

    AHEAD = 2  # jobs given to a worker: while the result of one is fetched and written, it works on the next

    def __init__(
        self,
        start: Callable[[], Worker],
        workers: int,
        *,
        retries: int,
        patience: float,
        at_once: int | None = None,
        first_answers: Callable[..., list[Any]] = cluster.first_answers,
        fetch: Callable[[Any], Any] = cluster.fetch,
    ) -> None:
        self._start, self._retries, self._patience = start, retries, patience
        self._first_answers, self._fetch = first_answers, fetch
        self._failed_starts = 0  # in a row
        self._began = 0.0
        self._again: deque[tuple[Job, int]] = deque()
        self._left: deque[deque[Job]] = deque()  # runs of workers that were lost
        self._workers = [WorkerState(start()) for _ in range(workers)]
        self._at_once = workers if at_once is None else min(at_once, workers)

    @property
    def alive(self) -> int:
        """Workers that hold their tool."""
        return sum(state.loaded for state in self._workers)

    @property
    def seconds(self) -> float:
        """Since a worker was given its first job."""
        return time.monotonic() - self._began if self._began else 0.0

    def work(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """Do jobs, each on whichever worker is free; only a few are in flight.

        Args:
            jobs: Taken one by one as there is room.

        Yields:
            One outcome per job, in the order in which they finish.

        Raises:
            StartError: No worker can be kept alive.
            ValueError: What making the tool raised, if the input is wrong.
        """
        source = iter(jobs)
        first = next(source, None)
        if first is None:
            return
        source = chain([first], source)
        while True:
            exhausted = self._give(source)
            if exhausted and not any(state.given for state in self._workers):
                return
            if exhausted:
                self._end_unplaced()
            yield from self._collect()

    def wait_for_place(self) -> None:
        """Wait until the cluster has room for a worker.

        Raises:
            StartError: It never has.
        """
        while not any(state.placed for state in self._workers):
            deque(self._collect(), maxlen=0)

    def shut_down(self) -> None:
        """End the workers."""
        for state in self._workers:
            state.worker.end()
        self._workers = []

    def _end_unplaced(self) -> None:
        """End the workers that have no place yet, for which there is no work: the cluster need not grow for them."""
        for state in [state for state in self._workers if not state.placed]:
            state.worker.end()
            self._workers.remove(state)

    def _give(self, source: Iterator[Job]) -> bool:
        """Give jobs to the workers that have room; returns whether there are no more."""
        # While others load, a worker takes one job at a time: the rest are for them to begin with.
        placed = [state for state in self._workers if state.placed]
        some_load = len(placed) < self._at_once or not all(state.loaded for state in placed)
        ahead = 1 if some_load else self.AHEAD
        exhausted = False
        for depth in range(ahead):
            for state in self._workers:
                if not state.loaded or len(state.given) > depth:
                    continue
                job, retries = self._again.popleft() if self._again else (self._next(state, source), 0)
                if job is None:
                    exhausted = True
                    continue
                if not state.given:
                    state.since = time.monotonic()
                    self._began = self._began or state.since
                state.given.append((state.worker.call(job.arguments), job, retries))
        return exhausted and not any(state.run for state in self._workers)

    def _next(self, state: WorkerState, source: Iterator[Job]) -> Job | None:
        """Take the next job for a worker: of its run, else of a new one, else of another's; None if there is none."""
        while True:
            if not state.run and self._left:
                state.run = self._left.popleft()
            if not state.run and (first := next(source, None)) is not None:
                state.run = deque([first, *islice(source, first.following)])
            if not state.run:
                state.run = self._taken()
            if not state.run:
                return None
            job = state.run.popleft()
            if job.wanted():
                return job

    def _taken(self) -> deque[Job]:
        """Take the end of the longest run, so much that all workers without one may share it with its owner."""
        longest = max(self._workers, key=lambda state: sum(job.work for job in state.run))
        taken = deque[Job]()
        if longest.run:
            left = sum(job.work for _, job, _ in longest.given) + sum(job.work for job in longest.run)
            there = max(sum(state.placed for state in self._workers), self._at_once)
            others = there - sum(bool(state.run) for state in self._workers)
            share = (left + others * longest.run[-1].lead) / (others + 1)
            while longest.run and left - longest.run[-1].work / 2 > share:
                left -= longest.run[-1].work
                taken.appendleft(longest.run.pop())
        return taken

    def _collect(self) -> Iterator[Outcome]:
        """Wait for the next worker to finish something; replace those that are overdue."""
        awaited = {state.awaited: state for state in self._workers if state.awaited is not None}
        # Those that the cluster has no room for yet are not overdue while others work.
        timed = [state for state in awaited.values() if state.placed] or list(awaited.values())
        deadline = min(state.since for state in timed) + self._patience
        for answer in self._first_answers(awaited, deadline - time.monotonic()):
            state = awaited[answer]
            try:
                value = self._fetch(answer)
            except ValueError as error:
                if state.loaded:
                    yield from self._finished(state, error=error)
                elif not self.alive:
                    raise
                else:  # others hold the same tool
                    yield from self._lost(state, error)
            except Exception as error:  # noqa: BLE001 - of the worker or of its job
                # Out of memory, or with its GPU in a bad state, the process would fail at the next job too.
                yield from self._lost(state, error)
            else:
                yield from self._advanced(state, value)
        now = time.monotonic()
        for state in [state for state in timed if state in self._workers and state.awaited is not None]:
            if now - state.since >= self._patience:
                problem = "the worker did not answer" if state.placed else "the cluster had no room for the worker"
                yield from self._lost(state, WorkerError(f"{problem} for {self._patience:g} s"))

    def _advanced(self, state: WorkerState, value: object) -> Iterator[Outcome]:
        """Note that a worker is there, then that it holds its tool, and then what it returns."""
        if not state.placed:
            state.placed, state.since = True, time.monotonic()
        elif not state.loaded:
            state.loaded, self._failed_starts = True, 0
        else:
            yield from self._finished(state, value=value)

    def _finished(
        self, state: WorkerState, value: object = None, error: Exception | None = None, *, again: bool = False
    ) -> Iterator[Outcome]:
        """Take the first job off a worker: tried again, or an outcome."""
        _, job, retries = state.given.popleft()
        state.since = time.monotonic()
        if again and retries < self._retries:
            self._again.appendleft((job, retries + 1))
        else:
            yield Outcome(job.key, value, error, retries)

    def _lost(self, state: WorkerState, error: Exception) -> Iterator[Outcome]:
        """Replace a worker; its first job has used a try, those that waited behind it have not."""
        state.worker.end()
        self._workers.remove(state)
        if state.run:
            self._left.append(state.run)
        # After the death of one that had started, its place is tried again however many had failed to start before.
        self._failed_starts = 0 if state.loaded else self._failed_starts + 1
        suspected, waiting = list(state.given)[:1], list(state.given)[1:]
        self._again.extendleft((job, retries) for _, job, retries in reversed(waiting))
        if suspected:
            # Tried again before the others: if this job kills workers, no other is blamed for it.
            yield from self._finished(state, error=error, again=True)
        if self._failed_starts <= self._retries:
            self._workers.append(WorkerState(self._start()))
        elif not self._workers:
            raise StartError(f"Cannot start a worker: {str(error).rstrip('.')}.") from error
