"""That a shard was proven whole, remembered: one process of a machine reads it all, the others believe that.

A proof belongs to the file as it is now: its path, size, times and the digest that the manifest records. With
a directory the proofs are files there, shared by all processes and runs of the machine; without one each
process remembers its own.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_VERSION = 1  # raised when a proof comes to mean more


class Proofs:
    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory
        self._known: dict[str, bytes] = {}  # the facts as JSON: a tenth of what they weigh as objects

    def once(self, identity: list[Any], prove: Callable[[], Any]) -> Any:
        """What `prove` returned (plain JSON) for this identity (plain JSON), here or in another process.

        Where several processes come at once, one proves and the others wait. What `prove` raises is not kept.
        """
        said = json.dumps([_VERSION, identity])
        key = hashlib.sha256(said.encode()).hexdigest()[:40]
        if key not in self._known:
            facts = prove() if self.directory is None else self._shared(key, said, prove)
            self._known[key] = json.dumps(facts).encode()
        return json.loads(self._known[key])

    def _shared(self, key: str, said: str, prove: Callable[[], Any]) -> Any:
        assert self.directory is not None
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / f"{key}.json").open("a+b") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            f.seek(0)
            found = _parse(f.read(), said)
            if found is None:
                found = {"of": said, "facts": prove()}
                line = json.dumps(found).encode()
                f.truncate(0)
                f.write(line)  # a kill half way leaves what does not parse: then it is proven again
                f.flush()
                os.fsync(f.fileno())
        return found["facts"]


def _parse(data: bytes, said: str) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) and found.get("of") == said and "facts" in found else None
