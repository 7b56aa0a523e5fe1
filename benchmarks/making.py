"""What benchmarks share: the payload of a real cache, clocks, memory, cold page caches, tables."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from numpy.typing import NDArray

from cache import CacheWriter, Field, Status, create_cache
from cache.codecs import lossy_codecs

# A cache of MViTv2-S and X3D-M on Kinetics-400, residual of 64 channels on a 2×7×7 grid.
PAYLOAD = (
    Field("vit/logits/action", ("class",), (400,), "float16"),
    Field("cnn/logits/action", ("class",), (400,), "float16"),
    Field("vit/pooled", ("channel",), (768,), "float16"),
    Field("cnn/pooled", ("channel",), (2048,), "float16"),
    Field("residual", ("channel", "time", "height", "width"), (64, 2, 7, 7), "float16"),
)
ROW_BYTES = sum(field.row_bytes for field in PAYLOAD)
CHUNK_SAMPLES = 1024
_MADV_DONTNEED = 4  # Linux
BOX = (0.0, 0.0, 0.0, 1.0, 1.0, 0.0)


def identity(fields: Sequence[Field]) -> dict[str, Any]:
    """An identity as far as the cache itself relies on it."""
    return {
        "format_version": 1,
        "dataset": {"name": "benchmark"},
        "teachers": {},
        "codecs": lossy_codecs(fields),
    }


def samples_table(count: int) -> pa.Table:
    """A samples table of Kinetics' kind of names."""
    return pa.table(
        {
            "sample_id": [f"video-{row:08d}_000000_000010" for row in range(count)],
            "path": [f"train/video-{row:08d}_000000_000010.mp4" for row in range(count)],
            "split": ["train"] * count,
            "start_sec": np.zeros(count),
            "stop_sec": pa.array([None] * count, pa.float64()),
            "label_action": np.arange(count, dtype=np.int32) % 400,
        }
    )


def make_cache(
    path: Path,
    *,
    samples: int,
    views: int = 1,
    fields: Sequence[Field] = PAYLOAD,
    chunk_samples: int = CHUNK_SAMPLES,
) -> CacheWriter:
    """An empty cache."""
    return create_cache(
        path,
        identity=identity(fields),
        provenance={"command": "benchmark"},
        samples=samples_table(samples),
        fields=fields,
        views=views,
        chunk_samples=chunk_samples,
        projection={},
    )


def own_arrays(samples: range, views: int) -> dict[str, NDArray[Any]]:
    """The three fields of every cache for a chunk whose rows are all valid."""
    shape = (len(samples), views)
    digests = np.arange(samples.start * views, samples.stop * views, dtype=np.uint64)
    return {
        "status": np.full(shape, Status.VALID, np.uint8),
        "input_digest": digests.reshape(shape),
        "views": np.broadcast_to(np.array(BOX), (*shape, len(BOX))),
    }


def times_ms(
    call: Callable[[Any], object],
    batches: Iterable[Any],
    *,
    before: Callable[[], object] | None = None,
) -> list[float]:
    """The time of a call for each batch; `before` is called ahead of each, untimed.

    The last result is kept until the next one is there, as a training loop keeps its batch.
    Otherwise the allocator may give the memory back each time and have it zeroed again: that takes
    longer than the copying, and hits the one way or the other by chance.
    """
    times = []
    kept = None
    for batch in batches:
        if before is not None:
            before()
        start = time.perf_counter()
        kept = call(batch)
        times.append((time.perf_counter() - start) * 1000)
    del kept
    return times


def forget_pages(folder: Path) -> None:
    """Make the files below a folder cold: drop this process's mapped pages, then the page cache.

    No root needed: `madvise(MADV_DONTNEED)` on each mapping of such a file (a page that is mapped
    somewhere stays cached), then `posix_fadvise(POSIX_FADV_DONTNEED)` on each file, after `sync`,
    as dirty pages stay too. Mappings and open files remain as they are.
    """
    os.sync()
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        if name.startswith(str(folder)):
            start, stop = (int(address, 16) for address in span.split("-"))
            if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED):
                raise OSError(ctypes.get_errno(), f"madvise on {name}")
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


@contextmanager
def memory() -> Iterator[list[list[float]]]:
    """The resident megabytes of this process and of each of its children, twice a second."""
    found: list[list[float]] = []
    done = threading.Event()

    def watch() -> None:
        own = psutil.Process()
        while not done.wait(0.5):
            with suppress(psutil.NoSuchProcess):
                everyone = [own, *own.children(recursive=True)]
                found.append([one.memory_info().rss / 1e6 for one in everyone])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def thirds(found: Sequence[float]) -> str:
    """The greatest value in each third: flat, or does it grow?"""
    parts = np.array_split(np.array(found), 3)
    return ", ".join(f"{part.max():.0f}" if len(part) else "–" for part in parts)


def machine() -> str:
    """Where the figures were measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores of {platform.machine()}, {memory:.0f} GiB, Python "
        f"{platform.python_version()}, load {load:.1f} when this was printed"
    )


def command() -> str:
    """That was typed."""
    return f"python {shlex.join(sys.argv)}"


def commit_of(folder: Path) -> str:
    """The commit that is checked out; `+` where tracked files but results differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "-s", "-uno", "--", ":/", ":/!docs/results")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def table_text(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in markdown, numbers to the right; ends without a line break."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in markdown."""
    print(table_text(head, rows))
