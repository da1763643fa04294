"""Sends the record of a run to its store, and keeps it in memory and on disk while the store does not take it."""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from configs.errors import InputError
from workflow.tracking.entries import Artifact, Batch, Entry, TrainedModel, Writer, is_refusal
from workflow.tracking.pending import PendingRecord
from workflow.tracking.store import first_line, require_answer, shown

PATIENCE_SECONDS = 10.0
END_SECONDS = 10.0
MAX_PAUSE_SECONDS = 60.0


@dataclass(eq=False)
class _Item:
    """An entry that is not written yet.

    Args:
        entry: The entry.
        kept: Whether it is on disk.
        written: Whether the store has it.
        settled: Whether nothing more is tried.
    """

    entry: Entry
    kept: bool = False
    written: bool = False
    settled: bool = False


class Sender:
    """Sends entries in order, from a thread of its own; the work never waits for long and never fails.

    Args:
        writer: Of the run.
        record: Receives what the store does not take.
        notify: Receives messages for the user.
    """

    def __init__(self, writer: Writer, record: PendingRecord, notify: Callable[[str], None]) -> None:
        self._writer, self._record, self._notify = writer, record, notify
        self._items: deque[_Item] = deque()
        self._refused: list[_Item] = []
        self._away = self._warned = self._closing = self._closed = False
        self._failures = self._lost = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_until_closed, name="tracking-store", daemon=True)

    def send(self, entry: Entry) -> bool:
        """Send an entry, or keep it until the store takes it; returns whether the store has it."""
        item = _Item(entry)
        with self._changed:
            self._items.append(item)
            if self._away:
                self._keep(item)
                return False
            if not self._thread.is_alive():
                self._thread.start()
            self._changed.notify_all()
            while not (item.settled or self._away):
                in_time = self._changed.wait_for(lambda: item.settled or self._away, PATIENCE_SECONDS)
                # A large file takes its time.
                if not in_time and (isinstance(entry, Batch) or not self._answers()):
                    self._go_on_without(TimeoutError("it does not answer"))
            return item.written

    def close(self) -> None:
        """Try once more to send what waits; what the store does not take stays on disk, and the user is notified."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while (waiting := len(self._items)) and self._changed.wait_for(
                lambda: self._closed or len(self._items) < waiting, END_SECONDS
            ):
                if self._closed:
                    break
            self._closed = True
            self._changed.notify_all()
            left = [*self._refused, *self._items]
            if not left and not self._lost:
                self._record.discard()
                return
            for item in left:
                self._keep(item)
            lost = self._lost + sum(not item.kept for item in left)
            self._record.close()
        run, store = self._writer.address.run_id, shown(self._writer.address.tracking_uri)
        message = f"The record of the run {run} is not complete in the tracking store {store}.".replace("run  ", "run ")
        if any(item.kept for item in left):
            message += (
                f" What it lacks is in {self._record.base}; upload it once the store can be written, with:\n"
                f"  voxlift sync {self._record.base}"
            )
        self._notify(message + (f"\n{lost} of its entries could not be kept and are lost." if lost else ""))

    def _answers(self) -> bool:
        try:
            require_answer(self._writer.address.tracking_uri)
        except Exception:  # noqa: BLE001 - the backend of a store may raise anything
            return False
        return True

    def _write_until_closed(self) -> None:
        while True:
            with self._changed:
                if self._away and not self._closing:
                    self._changed.wait(min(2.0 ** (self._failures - 1), MAX_PAUSE_SECONDS))
                self._changed.wait_for(lambda: self._closed or self._items)
                if self._closed:
                    return
                item, away = self._items[0], self._away
            error = None
            try:
                if away:  # MLflow would try for minutes
                    require_answer(self._writer.address.tracking_uri)
                self._writer.write(item.entry)
            except Exception as caught:  # noqa: BLE001 - the backend of a store may raise anything
                error = caught
            with self._changed:
                self._settle(item, error)
                self._changed.notify_all()

    def _settle(self, item: _Item, error: Exception | None) -> None:
        if self._closed:  # the entry is on disk
            return
        gone = isinstance(item.entry, Artifact | TrainedModel) and not item.entry.file.exists()
        if error is not None and not is_refusal(error) and not gone:
            self._failures += 1
            self._go_on_without(error)
            self._closed = self._closing
            return
        self._failures = 0
        item.settled, item.written = True, error is None
        self._items.popleft()
        if error is not None and gone:
            self._lost += 1
        elif error is not None:
            self._refused.append(item)
            self._keep(item)
            self._warn(error)
        if not self._items and self._away:
            self._away = False
            if not self._refused:
                self._record.discard()
            self._notify("The tracking store can be written again; it has the record so far.")

    def _go_on_without(self, error: Exception) -> None:
        """Keep on disk what waits, and let nobody wait for the store."""
        self._warn(error)
        if not self._away:
            self._away = True
            for item in self._items:
                self._keep(item)
        self._changed.notify_all()

    def _keep(self, item: _Item) -> None:
        if item.kept:
            return
        with suppress(OSError, InputError):
            item.entry = self._record.add(item.entry)
            item.kept = True

    def _warn(self, error: Exception) -> None:
        """Say once that a store does not take the record."""
        if not self._warned:
            self._warned = True
            self._notify(
                f"Cannot record in the tracking store {shown(self._writer.address.tracking_uri)}: {first_line(error)}."
                " The work goes on; its record waits until the store can be written."
            )
