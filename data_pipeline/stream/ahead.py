"""Prepare the next steps in a thread while the model runs."""

import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.2


class Ahead(Generic[T]):
    """An iterator run at most `depth` items ahead. What it raises comes out of every `next`."""

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._ready: queue.Queue[tuple[T] | BaseException] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._held: tuple[T] | BaseException | None = None
        # The thread must not hold `self`: a stream that nobody needs any more then ends its thread.
        self._thread = threading.Thread(
            target=_run, args=(items, self._ready, self._stop), name="stream-ahead", daemon=True
        )
        self._thread.start()
        # Also at the interpreter's exit: a thread inside native code must not outlive what it calls.
        self._end = weakref.finalize(self, _end, self._stop, self._thread)

    def ready(self, seconds: float) -> bool:
        """Wait that long at most; True once `next` would not wait."""
        if self._error is None and self._held is None:
            try:
                self._held = self._ready.get(timeout=seconds)
            except queue.Empty:
                return False
        return True

    def next(self) -> T:
        if self._error is None:
            entry = self._held or self._ready.get()
            self._held = None
            if isinstance(entry, tuple):
                return entry[0]
            self._error = entry
        raise self._error

    def close(self) -> None:
        """End the thread and drop what it prepared."""
        self._end()


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():
        thread.join()


def _run(items: Iterator[T], ready: queue.Queue[tuple[T] | BaseException], stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put((item,), ready, stop):
                return
        _put(StopIteration("the stream ended"), ready, stop)
    except BaseException as e:  # noqa: BLE001 - raised again where the item is asked for
        _put(e, ready, stop)


def _put(
    entry: tuple[T] | BaseException, ready: queue.Queue[tuple[T] | BaseException], stop: threading.Event
) -> bool:
    """Wait for room; False once nobody wants the entry."""
    while not stop.is_set():
        try:
            ready.put(entry, timeout=_POLL_SECONDS)
        except queue.Full:
            continue
        return True
    return False
