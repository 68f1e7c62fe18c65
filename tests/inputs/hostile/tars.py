"""Tars that are cut, name what lies outside, or carry programs."""

import functools
import gzip
import io
import pickle
import tarfile
from pathlib import Path

from hostile.images import JPEG, KEPT, encoded, photo
from hostile.program import Program


def tar_of(*members: tuple[str, bytes] | tarfile.TarInfo, end: bool = True) -> bytes:
    out = io.BytesIO()
    for member in members:
        info, data = (
            (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
        )
        if data:
            info.size = len(data)
        out.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024) * end


def special(name: str, kind: bytes, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, "/etc/hostname", size
    return info


@functools.cache
def tars(canary: Path) -> dict[str, tuple[bytes, list[str]]]:
    """name: bytes, and the reasons in it; a sound pair comes first in each and is kept."""
    a = (("a.jpg", JPEG), ("a.txt", b"a sound caption"))
    b = (("b.jpg", encoded(photo(9), "JPEG")), ("b.txt", b"another caption"))
    whole = tar_of(*a, *b)
    first = 1024 + len(JPEG) + -len(JPEG) % 512 + 512  # bytes of the first pair
    program = pickle.dumps(Program(canary))
    return {
        "cut-at-member.tar": (whole[:first], [KEPT, "broken tar"]),
        "cut-in-header.tar": (whole[: first + 100], [KEPT, "broken tar"]),
        "cut-in-payload.tar": (whole[: first + 700], [KEPT, "broken tar"]),
        "zero-byte.tar": (b"", ["broken tar"]),
        "no-tar.tar": (b"hello " * 300, ["broken tar"]),
        "duplicate-key.tar": (tar_of(*a, *b, a[1]), [KEPT, KEPT, "duplicate key"]),
        "missing-member.tar": (tar_of(*a, b[1]), [KEPT, "invalid record"]),
        "absolute-name.tar": (tar_of(*a, ("/tmp/c.jpg", JPEG)), [KEPT, "refused member"]),
        "dot-dot-name.tar": (tar_of(*a, ("../c.jpg", JPEG)), [KEPT, "refused member"]),
        "symlink.tar": (tar_of(*a, special("c.jpg", tarfile.SYMTYPE)), [KEPT, "refused member"]),
        "hardlink.tar": (tar_of(*a, special("c.jpg", tarfile.LNKTYPE)), [KEPT, "refused member"]),
        "device.tar": (tar_of(*a, special("c.jpg", tarfile.CHRTYPE)), [KEPT, "refused member"]),
        "fifo.tar": (tar_of(*a, special("c.jpg", tarfile.FIFOTYPE)), [KEPT, "refused member"]),
        **{
            f"pickle-{ending}.tar": (
                tar_of(*a, (f"c.{ending}", program), ("c.txt", b"c")),
                [KEPT, "refused member"],
            )
            for ending in ("pkl", "pth", "npy", "pyd")
        },
        "pickle-as-text.tar": (tar_of(*a, ("c.jpg", JPEG), ("c.txt", program)), [KEPT, "invalid record"]),
        "pickle-as-json.tar": (tar_of(*a, ("c.jpg", JPEG), ("c.json", program)), [KEPT, "invalid record"]),
        "huge-member.tar": (
            tar_of(*a, special("c.jpg", tarfile.REGTYPE, 2**40), end=False),
            [KEPT, "broken tar"],
        ),
        "bomb.tar.gz": (
            gzip.compress(tar_of(*a, ("c.jpg", bytes(100 * 2**20)), ("c.txt", b"c")), 1),
            [KEPT, "image file too large"],
        ),
        "nested.tar": (tar_of(*a, ("c.tar", whole), ("c.txt", b"c")), [KEPT, "invalid record"]),
    }
