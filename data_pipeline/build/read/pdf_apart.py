"""PDF files read in a process of their own: a page that takes hours, or ends the library, ends that alone.

A file of two kilobytes can nest forms so deep that no one lives to see its page. Such a page cannot be told
before it is drawn, and nothing stops the library from inside; the kernel does, by the CPU time of a page.
"""

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import IO, Any, cast

from data_pipeline.build.read.pdf import PdfOptions, read_pdf_bytes
from data_pipeline.build.read.reading import Fault, Item
from data_pipeline.errors import TransientError
from data_pipeline.sample import Media, Sample, Segment

MAX_LOST = 3  # pages of one file that may end the process; then the rest of the file is left
_MAX_MEMORY = 4 * 2**30  # address space, a few hundred MiB of which the libraries take at once
_HEAD = 8


def read_pdf(
    data: bytes,
    file: str,
    *,
    source: str,
    licence: str | None = None,
    options: PdfOptions | None = None,
    url: str | None = None,
) -> Iterator[Item]:
    """As `read_pdf_bytes`; a page beyond `options.page_seconds`, or one that ends the process, is a fault.

    Raises TransientError where the process was killed from outside: that says nothing of the page.
    """
    options = options or PdfOptions()
    wanted: dict[str, Any] = {"file": file, "source": source, "licence": licence, "url": url}
    wanted["options"] = options.model_dump(mode="json", include=set(PdfOptions.model_fields))
    page = 0
    for lost in range(1, MAX_LOST + 1):
        child = _Child.get()
        whole = False
        try:
            child.send({**wanted, "first": page}, data)
            while (item := child.item()) is not None:
                page += 1
                yield item
            whole = True
            return
        except EOFError:
            why = child.ended()
        finally:
            if not whole:
                child.kill()
        if why in (-signal.SIGKILL, -signal.SIGTERM):
            raise TransientError(
                f"the process that reads {file} was killed from outside. What is done is kept:\n"
                "  repeat the same command, with fewer --workers if memory was short"
            )
        taken = f"more than {options.page_seconds} s of CPU time" if why == -signal.SIGPROF else _said(why)
        reason = "page takes too long" if why == -signal.SIGPROF else "page ends the PDF library"
        rest = " and all that follow" if lost == MAX_LOST else ""
        page += 1
        fault = Fault(reason=reason, detail=f"{taken}{rest}", bad=True, file=file, where=f"page {page}{rest}")
        yield Item.failed(fault)


def _said(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class _Child:
    """The process that reads for this one; it is started once, and again after it has died."""

    _running: "tuple[int, _Child] | None" = None

    @classmethod
    def get(cls) -> "_Child":
        if (
            cls._running is None
            or cls._running[0] != os.getpid()
            or cls._running[1].process.poll() is not None
        ):
            cls._running = (os.getpid(), cls())
        return cls._running[1]

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(self.kill)

    def send(self, head: dict[str, Any], data: bytes) -> None:
        try:
            _write(cast(IO[bytes], self.process.stdin), head, [data])
        except OSError:
            raise EOFError from None

    def item(self) -> Item | None:
        """The next one; None after the last. Raises EOFError where the process has ended."""
        head, parts = _read(cast(IO[bytes], self.process.stdout))
        return _item(head, parts) if head else None

    def ended(self) -> int:
        return self.process.wait()

    def kill(self) -> None:
        atexit.unregister(self.kill)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def _write(pipe: IO[bytes], head: dict[str, Any], parts: list[bytes]) -> None:
    text = json.dumps({"head": head, "sizes": [len(p) for p in parts]}).encode()
    pipe.write(len(text).to_bytes(_HEAD, "big") + text)
    for part in parts:
        pipe.write(part)
    pipe.flush()


def _read(pipe: IO[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    page = json.loads(_exactly(pipe, int.from_bytes(_exactly(pipe, _HEAD), "big")))
    return page["head"], [_exactly(pipe, size) for size in page["sizes"]]


def _exactly(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _page(item: Item) -> tuple[dict[str, Any], list[bytes]]:
    """Of a PDF page every image has its bytes, and no fault shows one."""
    page: dict[str, Any] = {"file": item.file, "where": item.where, "cuts": [vars(c) for c in item.cuts]}
    page["fault"] = vars(item.fault) if item.fault else None
    page["sample"] = None
    if item.sample is None:
        return page, []
    row = {k: v for k, v in vars(item.sample).items() if k != "image_bytes"}
    row["segments"] = [vars(s) for s in item.sample.segments]
    row["media"] = [vars(m) for m in item.sample.media]
    page["sample"] = row
    return page, [b or b"" for b in item.sample.image_bytes]


def _item(page: dict[str, Any], parts: list[bytes]) -> Item:
    sample = None
    if (row := page["sample"]) is not None:
        row["segments"] = tuple(Segment(**s) for s in row["segments"])
        row["media"] = tuple(Media(**m) for m in row["media"])
        sample = Sample(**{**row, "image_bytes": tuple(parts)})
    return Item(
        file=page["file"],
        where=page["where"],
        sample=sample,
        fault=Fault(**page["fault"]) if page["fault"] else None,
        cuts=tuple(Fault(**c) for c in page["cuts"]),
    )


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Reads one file after another. SIGPROF ends the process, and so does the death of the other one."""
    while True:
        try:
            head, (data,) = _read(requests)
        except EOFError:
            return
        options = PdfOptions.model_validate(head.pop("options"))
        items = read_pdf_bytes(data, head.pop("file"), options=options, **head)
        while True:
            signal.setitimer(signal.ITIMER_PROF, options.page_seconds)
            item = next(items, None)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if item is None:
                break
            _write(answers, *_page(item))
        _write(answers, {}, [])


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asks decides when to end
    _, most = resource.getrlimit(resource.RLIMIT_AS)  # a batch system's own limit may be lower
    memory = _MAX_MEMORY if most == resource.RLIM_INFINITY else min(_MAX_MEMORY, most)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve(sys.stdin.buffer, sys.stdout.buffer)
