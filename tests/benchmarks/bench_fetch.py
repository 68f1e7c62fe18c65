"""Fetching against the plain way (64 threads of urllib, each image to a file) on a server of this machine.

    python tests/benchmarks/bench_fetch.py [--images 2000] [--out FILE]

Both take the same images of the same hosts. What Fovea does besides: judge addresses, robots.txt and
headers, keep rates and deadlines, hash, commit with fsync. Reported: this process's CPU time and the wall
time, Fovea divided by plain; and a second run, from the cache. The best of three rounds.
"""

import argparse
import asyncio
import ipaddress
import json
import multiprocessing
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipeline.build.fetch.config import FetchConfig
from data_pipeline.build.fetch.fetcher import Fetcher

BODY = 50_000  # bytes of an image
HOSTS = 50


def serve(ready: "multiprocessing.Queue[int]") -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        number = request.split(b" ", 2)[1]
        status, body = (
            (b"404 None", b"") if number == b"/robots.txt" else (b"200 OK", number.ljust(BODY, b"."))
        )
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body)))
        writer.write(body)
        await writer.drain()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        ready.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def timed(work: Callable[[], int]) -> dict[str, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    count = work()
    return {
        "images": count,
        "cpu_ms": 1e3 * (time.process_time() - cpu) / count,
        "wall_ms": 1e3 * (time.perf_counter() - wall) / count,
    }


def plain(port: int, count: int, folder: Path) -> int:
    def one(n: int) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{n}", timeout=10) as response:
            (folder / str(n)).write_bytes(response.read())
        return 1

    with ThreadPoolExecutor(64) as pool:
        return sum(pool.map(one, range(count)))


def fovea(port: int, count: int, folder: Path) -> int:
    config = FetchConfig(allow_ports=(port,), per_host_rate=1e9, per_host_connections=8)
    network = {"allow": [ipaddress.ip_network("127.0.0.1/32")], "names": lambda host: ["127.0.0.1"]}
    with Fetcher(config, folder, **network) as fetcher:
        urls = (f"http://h{n % HOSTS}.test:{port}/{n}" for n in range(count))
        return sum(len(f.data or b"") == BODY for f in fetcher.fetch(urls))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ready: multiprocessing.Queue[int] = multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(ready,), daemon=True)
    server.start()
    port = ready.get()
    rounds: dict[str, list[dict[str, float]]] = {"plain": [], "fovea": [], "again": []}
    for _ in range(3):
        with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
            rounds["plain"].append(timed(lambda a=a: plain(port, args.images, Path(a))))
            rounds["fovea"].append(timed(lambda b=b: fovea(port, args.images, Path(b))))
            rounds["again"].append(timed(lambda b=b: fovea(port, args.images, Path(b))))
    server.kill()
    best = {k: {m: min(r[m] for r in v) for m in v[0]} for k, v in rounds.items()}
    assert all(v["images"] == args.images for v in best.values()), best
    report = {
        "cpu_ratio": best["fovea"]["cpu_ms"] / best["plain"]["cpu_ms"],
        "wall_ratio": best["fovea"]["wall_ms"] / best["plain"]["wall_ms"],
        "again_cpu_ratio": best["again"]["cpu_ms"] / best["plain"]["cpu_ms"],
        "load": os.getloadavg()[0],
        **best,
    }
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
