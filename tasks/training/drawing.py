"""Processes that draw the patches of a training into memory that they share with it; they do not load TensorFlow.

A block belongs to one process, so none is drawn twice, and a process draws the patches of its blocks in their order. It
has each drawn before there is room for it, and so the next block too.
"""

import mmap
import pickle
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.errors import RunError
from configs.schema import RunConfig
from tasks.machine.child import listen, start_child
from tasks.machine.shared_memory import shared_file
from tasks.machine.worker import plain_errors
from tasks.training.blocks import PATCHES, Patch, PatchSource, TrainingVolume, block_number

REPLACEMENTS = 3  # of processes that have died, in a training
ALIGNMENT = 64  # bytes at which arrays begin in shared memory


class Batch(NamedTuple):
    """The patches of a step.

    Args:
        resampled: The network's input, float32 `(batch, depth, height, width, 1)`.
        fine: Its target, likewise.
        share: Of the foreground in each patch, float32.
        number: Of the degradation of each, int32.
        damping: Of the correction of each, float32.
    """

    resampled: NDArray[np.float32]
    fine: NDArray[np.float32]
    share: NDArray[np.float32]
    number: NDArray[np.int32]
    damping: NDArray[np.float32]


@dataclass(frozen=True)
class Task:
    """Work of a drawing process.

    Args:
        process: Its number.
        processes: Of them all.
        config: The run.
        first: Patch to begin with or after.
        handles: Of its connection, of the memory of the volumes, and of that of the batches.
        volumes: Pickled, without their arrays.
        places: (start, stop) of each array of the volumes, in bytes.
        batches: That the memory holds.
        admitted: Batches of the run that it may draw before it is sent more.
    """

    process: int
    processes: int
    config: RunConfig
    first: int
    handles: tuple[int, int, int]
    volumes: bytes
    places: tuple[tuple[int, int], ...]
    batches: int
    admitted: int


class PatchProcesses:
    """Processes that draw patches, for a `with` block; they end with it, and with this process however that ends.

    Args:
        volumes: As for `PatchSource`.
        config: The run.
        processes: Their number.
        steps_taken: Batches to leave out.

    Attributes:
        error: Raised by `next_batch`, None if nothing was.
    """

    def __init__(
        self, volumes: Sequence[TrainingVolume], config: RunConfig, processes: int, steps_taken: int = 0
    ) -> None:
        training = config.training
        self._size, self._processes = training.batch_size, processes
        self._next, self._lock, self._ended = steps_taken, Lock(), False
        self._replaced = 0
        self.error: Exception | None = None
        # Each process may be a block ahead.
        batches = 2 + -(-PATCHES * processes // self._size)
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(tuple(volumes), protocol=5, buffer_callback=buffers.append)
        sizes = [-(-buffer.raw().nbytes // ALIGNMENT) * ALIGNMENT for buffer in buffers]
        starts = list(accumulate(sizes, initial=0))
        places = tuple((start, start + buffer.raw().nbytes) for start, buffer in zip(starts, buffers, strict=False))
        self._volumes = shared_file(max(1, starts[-1]))
        with mmap.mmap(self._volumes.fileno(), 0) as memory:
            for (start, stop), buffer in zip(places, buffers, strict=True):
                memory[start:stop] = buffer.raw()
        self._file = shared_file(batches * 2 * self._size * prod(training.patch) * 4)
        self._memory = batches_in(self._file.fileno(), config, batches)
        handles = (-1, self._volumes.fileno(), self._file.fileno())
        self._task = Task(
            0, processes, config, steps_taken * self._size, handles, pickled, places, batches, steps_taken + batches
        )
        self._children = [_Child(replace(self._task, process=number)) for number in range(processes)]

    def __enter__(self) -> "PatchProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for child in self._children:
            child.process.kill()
        with self._lock:  # whoever waits for a patch has seen that its process is gone
            for child in self._children:
                child.end()
        self._volumes.close()
        self._file.close()

    def next_batch(self) -> Batch:
        """Return the patches of the next step, once they are drawn.

        Raises:
            RunError: A process has died again and again.
            Exception: What drawing a patch raised.
        """
        with self._lock:
            if self.error is not None:
                raise self.error
            first = self._next * self._size
            try:
                drawn = [self._drawn(index) for index in range(first, first + self._size)]
            except Exception as error:
                self.error = error
                raise
            resampled, fine = self._memory[self._next % self._task.batches].copy()
            self._next += 1
            for child in self._children:
                child.admit()
            share, number, damping = zip(*drawn, strict=True)
        numbers = np.array(number, np.int32)
        return Batch(resampled, fine, np.array(share, np.float32), numbers, np.array(damping, np.float32))

    def no_batch(self) -> Batch:
        """Return zeros in the shapes of a batch."""
        resampled, fine = np.zeros_like(self._memory[0])
        none = np.zeros(self._size, np.float32)
        return Batch(resampled, fine, none, none.astype(np.int32), none)

    def _drawn(self, index: int) -> tuple[float, int, float]:
        """Wait for a patch, which is in the memory then; returns its share, number and damping."""
        owner = block_number(index) % self._processes
        while True:
            child = self._children[owner]
            try:
                drawn, error = child.connection.recv()
            except (EOFError, OSError):
                self._replace(owner, index)
                continue
            if error is not None:
                raise error
            return drawn  # type: ignore[no-any-return]

    def _replace(self, owner: int, index: int) -> None:
        """Start a process anew, from a patch on."""
        child = self._children[owner]
        status = child.end()
        self._replaced += 1
        if self._ended or self._replaced > REPLACEMENTS:
            raise RunError(
                f"Cannot draw patch {index}: its process has died, with status {status}, and {REPLACEMENTS} before it.",
                "See whether the machine is out of memory: fewer CPUs for the training make fewer such processes.",
            )
        admitted = self._next + self._task.batches
        self._children[owner] = _Child(replace(self._task, process=owner, first=index, admitted=admitted))


class _Child:
    """A drawing process and the connection to it."""

    def __init__(self, task: Task) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            task = replace(task, handles=(theirs.fileno(), *task.handles[1:]))
            self.process = start_child(f"from {__name__} import serve; serve()", task, task.handles)

    def admit(self) -> None:
        """Let it draw another batch."""
        with suppress(OSError):  # of a process that is gone: who waits for its patches sees that
            self.connection.send(None)

    def end(self) -> int:
        """End the process at once; returns its exit status."""
        self.process.kill()
        self.connection.close()
        return self.process.wait()


def serve() -> None:
    """Draw the patches of the task in standard input, in a process of its own."""
    task: Task = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by the parent
    parent = Connection(task.handles[0])
    admitted: SimpleQueue[None] = SimpleQueue()
    listen(parent, admitted.put)
    for drawn in _patches(task, admitted):
        parent.send(drawn)


def _patches(task: Task, admitted: "SimpleQueue[None]") -> Iterator[tuple[Any, Exception | None]]:
    """Draw the patches of a task into the memory; yields the rest of each, or the error that ends it."""
    training, batches = task.config.training, task.admitted
    try:
        with plain_errors():
            volumes = memoryview(mmap.mmap(task.handles[1], 0, access=mmap.ACCESS_READ))
            source = PatchSource(
                pickle.loads(task.volumes, buffers=[volumes[slice(*place)] for place in task.places]),  # noqa: S301
                task.config,
            )
            memory = batches_in(task.handles[2], task.config, task.batches)
            for index in range(task.first, training.steps * training.batch_size):
                if block_number(index) % task.processes == task.process:
                    patch: Patch = source.draw(index)
                    batch, place = divmod(index, training.batch_size)
                    while batch >= batches:
                        admitted.get()
                        batches += 1
                    memory[batch % task.batches, 0, place] = patch.resampled
                    memory[batch % task.batches, 1, place] = patch.fine
                    yield (patch.share, patch.number, patch.damping), None
    except Exception as error:  # noqa: BLE001 - it goes to the parent
        yield None, error


def batches_in(handle: int, config: RunConfig, batches: int) -> NDArray[np.float32]:
    """Map the inputs and targets of batches, `(batches, 2, batch, depth, height, width, 1)`."""
    shape = (batches, 2, config.training.batch_size, *config.training.patch, 1)
    return np.frombuffer(mmap.mmap(handle, 0), np.float32).reshape(shape)
