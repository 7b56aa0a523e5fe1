"""Pushing and pulling a cache, beside copying the same files by other means; bytes that travel.

To a folder the reference is `shutil.copytree`, to an S3 server on this machine `put` and `get` of
s3fs, which check nothing and show what arrives half. Rows are those of MViTv2-S and X3D-M.

    python benchmarks/sharing.py
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np

from cache import CacheWriter, open_cache, open_writer, pull_cache, push_cache
from making import PAYLOAD, identity, machine, make_cache, own_arrays, print_table
from s3 import s3_server


def fill(writer: CacheWriter) -> None:
    """Write all that is pending."""
    generator = np.random.default_rng(0)
    for work in writer.pending():
        samples = writer.sample_range(work.chunk)
        arrays = own_arrays(samples, len(work.views))
        for field in PAYLOAD:
            shape = (len(samples), len(work.views), *field.shape)
            arrays[field.name] = generator.standard_normal(shape, np.float32).astype(field.dtype)
        writer.write_chunk(work.chunk, arrays, views=work.views)


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(path: Path, shelf: str, folder: Path, turns: int) -> list[list[object]]:
    """Push and pull, and the reference, in turn."""
    files, root = fsspec.url_to_fs(shelf)
    times: dict[str, list[float]] = {name: [] for name in ("push", "put", "pull", "get")}
    for turn in range(turns):
        ours, theirs = f"{shelf}/ours-{turn}", f"{root}/theirs-{turn}"
        copy, other = folder / "copy", folder / "other"
        push = lambda at=ours: push_cache(path, at, author="me", about=lambda *_: {})  # noqa: E731
        put = lambda at=theirs: files.put(str(path), at, recursive=True)  # noqa: E731
        pull = lambda at=ours, to=copy: pull_cache(at, to)  # noqa: E731
        get = lambda at=theirs, to=other: files.get(at, str(to), recursive=True)  # noqa: E731
        if "://" not in shelf:
            put = lambda at=theirs: shutil.copytree(path, at)  # noqa: E731
            get = lambda at=theirs, to=other: shutil.copytree(at, to)  # noqa: E731
        for name, call in (("push", push), ("put", put), ("pull", pull), ("get", get)):
            times[name].append(seconds(call))
        for made in (copy, other):
            shutil.rmtree(made)
        files.rm(f"{root}/ours-{turn}", recursive=True)
        files.rm(theirs, recursive=True)
    medians = {name: statistics.median(found) for name, found in times.items()}
    size = sum(open_cache(path).bytes_by_field().values()) / 1e6
    kind = shelf.partition("://")[0] if "://" in shelf else "folder"
    return [
        [
            f"{act}, {kind}",
            f"{medians[act]:.2f}",
            f"{size / medians[act]:.0f}",
            f"{medians[reference]:.2f}",
            f"{medians[act] / medians[reference]:.2f}",
        ]
        for act, reference in (("push", "put"), ("pull", "get"))
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--chunk-samples", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, s3_server() as bucket:
        folder = Path(temporary)
        path = folder / "cache"
        size = {"samples": arguments.samples, "views": arguments.views}
        with make_cache(path, **size, chunk_samples=arguments.chunk_samples) as writer:
            fill(writer)
        rows = compare(path, str(folder / "shelf"), folder, arguments.turns)
        rows += compare(path, f"{bucket}/shelf", folder, arguments.turns)
        moved = [push_cache(path, bucket, author="me", about=lambda *_: {})]
        moved.append(push_cache(path, bucket, author="me", about=lambda *_: {}))
        with open_writer(path, identity=identity(PAYLOAD)) as writer:
            writer.add_views(1)
            fill(writer)
        moved.append(push_cache(path, bucket, author="me", about=lambda *_: {}))
    print(
        f"\n{arguments.samples} samples × {arguments.views} views, chunks of "
        f"{arguments.chunk_samples} samples; medians of {arguments.turns} turns; {machine()}.\n"
    )
    print_table(["", "s", "MB/s", "s, plain copy", "ratio"], rows)
    print()
    names = ("first push", "the same again", "after one view more")
    table = [
        [name, done.files, f"{done.bytes / 1e6:.2f}", f"{done.bytes / moved[0].bytes:.4f}"]
        for name, done in zip(names, moved, strict=True)
    ]
    print_table(["", "chunk files", "MB sent", "of the first"], table)


if __name__ == "__main__":
    main()
