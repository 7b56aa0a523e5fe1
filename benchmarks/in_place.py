"""Training from a cache at a URL, beside the same cache in a folder: batches and waiting.

Batches of 64 rows, all fields, one view of each sample in an epoch, in the order that `distill`
draws: from all chunks where the store holds them, else from as many as half of it holds, while the
next ones are fetched. Between batches a sleep stands for the step of a GPU. The server speaks S3
and runs on this machine, beside the reader.

    python benchmarks/in_place.py
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np

from cache import Store, TeacherCache, open_cache, push_cache
from making import machine, make_cache, print_table
from s3 import s3_server
from sharing import fill

BATCH = 64


def epoch(cache: TeacherCache, seed: int, step: float) -> tuple[float, float]:
    """Read an epoch's batches; seconds in all, and of them waiting for batches."""
    generator = np.random.default_rng(seed)
    order, held = generator.permutation(cache.num_samples), cache.chunks_held()
    if held < cache.num_chunks:
        turn = generator.permutation(cache.num_chunks) // held
        order = order[np.argsort(turn[cache.chunks_of(order)], kind="stable")]
    views = generator.integers(cache.num_views, size=len(order))
    batches = math.ceil(len(order) / BATCH)
    share = 1.0 if held == cache.num_chunks else held / cache.num_chunks
    ahead, wanted, waited = math.ceil(share * batches), 0, 0.0
    begun = time.perf_counter()
    for batch in range(batches):
        until = min(batches, batch + ahead)
        if until > wanted:
            rows = slice(wanted * BATCH, until * BATCH)
            cache.want(order[rows], views[rows], list(cache.fields))
            wanted = until
        rows = slice(batch * BATCH, (batch + 1) * BATCH)
        asked = time.perf_counter()
        cache.read(order[rows], views[rows])
        waited += time.perf_counter() - asked
        time.sleep(step)
    return time.perf_counter() - begun, waited


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=16384)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--chunk-samples", type=int, default=512)
    parser.add_argument("--step", type=float, default=0.05, help="seconds of a training step")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, s3_server() as bucket:
        folder = Path(temporary)
        path = folder / "cache"
        size = {"samples": arguments.samples, "views": arguments.views}
        with make_cache(path, **size, chunk_samples=arguments.chunk_samples) as writer:
            fill(writer)
        url = push_cache(path, bucket, author="me", about=lambda *_: {}).url
        size_bytes = sum(open_cache(path).bytes_by_field().values())
        found: dict[str, list[tuple[float, float]]] = {}
        caches = {
            "in a folder": open_cache(path),
            "at a URL, the store holds all": open_cache(
                url, blocks=True, store=Store(folder / "all", 2 * size_bytes)
            ),
            "at a URL, the store holds a third": open_cache(
                url, blocks=True, store=Store(folder / "third", size_bytes // 3)
            ),
        }
        for number in range(arguments.epochs):
            for name, cache in caches.items():
                found.setdefault(name, []).append(epoch(cache, number, arguments.step))
        rows = []
        for number in range(arguments.epochs):
            reference = found["in a folder"][number][0]
            for name, of in found.items():
                seconds, waited = of[number]
                rows.append(
                    [
                        f"epoch {number + 1}, {name}",
                        f"{seconds:.1f}",
                        f"{arguments.samples / seconds:.0f}",
                        f"{waited / seconds:.1%}",
                        f"{reference / seconds:.2f}",
                    ]
                )
    print(
        f"\n{arguments.samples} samples × {arguments.views} views, {size_bytes / 1e6:.0f} MB, "
        f"chunks of {arguments.chunk_samples} samples, {arguments.step * 1000:.0f} ms of step a "
        f"batch; {machine()}.\n"
    )
    head = ["", "s", "samples/s", "waited", "throughput / in a folder"]
    print_table(head, rows)


if __name__ == "__main__":
    main()
