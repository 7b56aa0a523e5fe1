"""Opening a cache of 240,000 samples × 10 views; and a batch from caches of more and more rows.

Metadata, samples table, commits and statuses are real; the other chunk files are sparse (zeros with
their checksum), so the disk needs little. Each opening is measured in a fresh process.

    python benchmarks/open_large.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from cache import open_cache
from cache.commits import count_statuses, publish
from cache.layout import CHECKSUM_BYTES, chunk_key, crc32c
from cache.schema import STATUS_FIELD
from cache.staging import StagedChunk
from making import (
    CHUNK_SAMPLES,
    PAYLOAD,
    forget_pages,
    machine,
    make_cache,
    print_table,
    times_ms,
)

ROWS = (1_024, 16_384, 240_000)
BATCHES = (64, 256)

# Run in a fresh process: what it imports, then what it opens, timed apart.
OURS = """
from cache import open_cache
imported = time.perf_counter()
cache = open_cache(path)
opened = time.perf_counter()
status = cache.status
"""
ZARR = """
import zarr
imported = time.perf_counter()
group = zarr.open_group(path, mode="r")
opened = time.perf_counter()
status = group["status"][...]
"""
PROCESS = r"""
import json, re, sys, time
path = sys.argv[1]
start = time.perf_counter()
{body}
done = time.perf_counter()
assert status.all()
# Not `getrusage`: its maximum counts what the parent had when it started this process.
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024
print(json.dumps([imported - start, opened - imported, done - opened, peak]))
"""


def make_sparse(path: Path, *, samples: int, views: int) -> None:
    """A complete cache whose payload is zeros that take no room."""
    with make_cache(path, samples=samples, views=views) as writer:
        layout = writer.layout
        ones = np.ones(CHUNK_SAMPLES, np.uint8).tobytes()
        data = {
            field.name: (crc32c(bytes(layout.chunk_bytes(field))), layout.chunk_bytes(field))
            for field in layout.fields.values()
        }
        data[STATUS_FIELD.name] = (crc32c(ones), len(ones))
        for chunk in range(writer.num_chunks):
            checksums = {}
            for name, field in layout.fields.items():
                checksum, size = data[name]
                for view in range(views):
                    key = chunk_key(field, chunk, view)
                    with (path / key).open("wb") as file:
                        if field == STATUS_FIELD:
                            file.write(ones)
                        file.seek(size)
                        file.write(checksum.to_bytes(CHECKSUM_BYTES, "little"))
                    checksums[key] = (size + CHECKSUM_BYTES, checksum)
            statuses = np.ones((len(layout.sample_range(chunk)), views), np.uint8)
            counts = {"status": count_statuses(statuses)}
            maker = {"host": "", "pid": 0, "time": "", "packages": {}}
            publish(
                layout,
                StagedChunk("", chunk, tuple(range(views)), checksums, counts, {}, maker),
            )


def opening(path: Path, body: str) -> list[float]:
    """Seconds to import, to open, to read all statuses; peak bytes of the process."""
    done = subprocess.run(
        [sys.executable, "-c", PROCESS.format(body=body), str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(value) for value in json.loads(done.stdout)]


def measure_opening(path: Path, processes: int) -> None:
    """Print how long ours and plain zarr take, files cold and warm."""
    rows: list[list[str]] = []
    ours: list[list[float]] = []
    for name, body in (("open_cache, .status", OURS), ("zarr.open_group, status[...]", ZARR)):
        for state in ("cold", "warm"):
            runs = []
            for _ in range(processes):
                if state == "cold":
                    forget_pages(path)
                runs.append(opening(path, body))
            imported, opened, status, peak = np.median(runs, axis=0)
            if body is OURS:
                ours.append([opened, peak])
            seconds = [f"{value:.3f}" for value in (imported, opened, status)]
            rows.append([f"{name}, files {state}", *seconds, f"{peak / 1e6:.0f}"])
    print_table(["", "import, s", "open, s", "all statuses, s", "peak RSS, MB"], rows)
    opened, peak = np.max(ours, axis=0)
    verdict = ["met" if opened < 0.5 else "MISSED", "met" if peak < 300e6 else "MISSED"]
    print(f"\n- open_cache in less than 0.5 s: {opened:.3f} s, {verdict[0]}")
    print(f"- and less than 300 MB: {peak / 1e6:.0f} MB, {verdict[1]}")


def measure_batches(folder: Path, rows: int) -> list[str]:
    """One line: warm batches of a cache of so many rows, and of raw memmaps of the same size."""
    generator = np.random.default_rng(0)
    make_sparse(folder / "cache", samples=rows, views=1)
    cache = open_cache(folder / "cache")
    names = [field.name for field in PAYLOAD]
    maps = {}
    for field in PAYLOAD:
        path = folder / f"{field.name.replace('/', '.')}.bin"
        with path.open("wb") as file:
            file.truncate(rows * field.row_bytes)
        maps[field.name] = np.asarray(np.memmap(path, field.dtype, "r", shape=(rows, *field.shape)))

    def read(batch: Any) -> object:
        return cache.read(batch, np.zeros_like(batch), names)

    def read_maps(batch: Any) -> object:
        return {name: of[batch] for name, of in maps.items()}

    line = [f"{rows:,}"]
    for size in BATCHES:
        batches = [generator.choice(rows, size, replace=False) for _ in range(200)]
        times = []
        for reader in (read, read_maps):
            for start in range(0, rows, 256):  # every page once
                reader(np.arange(start, min(start + 256, rows)))
            times.append(statistics.median(times_ms(reader, batches)))
        line += [f"{times[0]:.2f}", f"{times[1]:.2f}", f"{times[0] / times[1]:.2f}"]
    return line


def main() -> None:
    """Make, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=240_000, help="of the cache that is opened")
    parser.add_argument("--views", type=int, default=10, help="of the cache that is opened")
    parser.add_argument("--processes", type=int, default=5, help="that open it, one by one")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="of the caches read from")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dualkd-open-large-") as name:
        path = Path(name, "cache")
        make_sparse(path, samples=options.samples, views=options.views)
        size = sum((file.stat().st_blocks * 512) for file in path.rglob("*") if file.is_file())
        print(f"{options.samples:,} samples × {options.views} views ({size / 1e6:.0f} MB on disk).")
        print(f"Median of {options.processes} fresh processes; {machine()}.\n")
        measure_opening(path, options.processes)
    lines = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory(prefix="dualkd-open-large-") as name:
            lines.append(measure_batches(Path(name), rows))
    print("\nMedian ms of a warm batch, and of raw np.memmaps as large:\n")
    heads = [f"{size}: {what}" for size in BATCHES for what in ("cache.read", "memmap", "ratio")]
    print_table(["rows of the cache", *heads], lines)


if __name__ == "__main__":
    main()
