"""Random batches out of a cache, beside other ways to keep the same bytes; all in one run.

The payload is that of a cache of MViTv2-S and X3D-M: 2×400 logits, 768 + 2048 pooled features, a
residual of 64×2×7×7, all float16, and views, status and digest. Every reader gives fresh arrays of
all fields for the same rows, in the order asked for; all are checked against each other first. They
take turns of fifteen batches, so that what else the machine does hits all of them alike. Nothing is
asserted about times: the requirements are printed as met or missed.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/read_speed.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorstore as ts
import torch
import zarr
from numpy.typing import NDArray

from cache import Field, open_cache
from cache.schema import OWN_FIELDS
from making import (
    PAYLOAD,
    forget_pages,
    machine,
    make_cache,
    own_arrays,
    print_table,
    times_ms,
)

FIELDS = (*OWN_FIELDS, *PAYLOAD)
BATCHES = (64, 256)
MEMMAP, OURS, OINDEX, FILES = "raw np.memmap", "cache.read", "zarr oindex", "file per sample"
H5_CHUNK_BYTES = 64 * 1024
H5_LAYOUTS = {"contiguous": "contiguous", "chunked": "chunks of 64 KiB"}
TS_POOL_BYTES = 2**30
TURN = 15
AHEAD = 5  # warm batches ahead of each turn that do not count: others emptied the caches

Rows = NDArray[np.int64]
Reader = Callable[[Rows], dict[str, Any]]


def write_all(folder: Path, count: int) -> None:
    """Write the same rows in every format, chunk by chunk."""
    generator = np.random.default_rng(0)
    writer = make_cache(folder / "cache", samples=count)
    (folder / "memmap").mkdir()
    maps = {
        field.name: np.memmap(
            memmap_path(folder, field), field.dtype, "w+", shape=(count, *field.shape)
        )
        for field in FIELDS
    }
    files = {}
    for layout in H5_LAYOUTS:
        (folder / layout).mkdir()
        files[layout] = h5py.File(folder / layout / "rows.h5", "w")
    for field in FIELDS:
        shape = (count, *field.shape)
        files["contiguous"].create_dataset(field.name, shape, field.dtype)
        rows = min(count, max(1, H5_CHUNK_BYTES // field.row_bytes))
        files["chunked"].create_dataset(field.name, shape, field.dtype, chunks=(rows, *field.shape))
    for chunk in range(writer.num_chunks):
        samples = writer.sample_range(chunk)
        arrays = own_arrays(samples, 1)
        for field in PAYLOAD:
            values = generator.standard_normal((len(samples), 1, *field.shape), np.float32)
            arrays[field.name] = values.astype(np.float16)
        writer.write_chunk(chunk, arrays)
        for name, values in arrays.items():
            for target in (maps[name], *(file[name] for file in files.values())):
                target[samples.start : samples.stop] = values[:, 0]
        write_samples(folder / "samples", samples, arrays)
    for target in maps.values():
        target.flush()
    for file in files.values():
        file.close()
    writer.close()


def memmap_path(folder: Path, field: Field) -> Path:
    """Where the bytes of a field lie."""
    return folder / "memmap" / f"{field.name.replace('/', '.')}.bin"


def write_samples(folder: Path, samples: range, arrays: dict[str, NDArray[Any]]) -> None:
    """One file per sample, in folders of a thousand."""
    for place, sample in enumerate(samples):
        row = {
            name: torch.from_numpy(np.array(values[place, 0])) for name, values in arrays.items()
        }
        path = sample_path(folder, sample)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(row, path)


def sample_path(folder: Path, sample: int) -> Path:
    """Where a sample's file lies."""
    return folder / f"{sample // 1000:03d}" / f"{sample:06d}.pt"


def readers(folder: Path, count: int) -> Iterator[tuple[str, Path, Reader]]:
    """Name, files and reader of each way."""
    maps = {
        field.name: np.asarray(
            np.memmap(memmap_path(folder, field), field.dtype, "r", shape=(count, *field.shape))
        )
        for field in FIELDS
    }
    yield MEMMAP, folder / "memmap", lambda rows: {name: of[rows] for name, of in maps.items()}

    cache = open_cache(folder / "cache")
    yield OURS, folder / "cache", lambda rows: cache.read(rows, np.zeros_like(rows))

    for layout, about in H5_LAYOUTS.items():
        file = h5py.File(folder / layout / "rows.h5", "r")
        sets = {field.name: file[field.name] for field in FIELDS}
        yield f"h5py, {about}", folder / layout, h5py_reader(sets)

    group = zarr.open_group(folder / "cache", mode="r")
    arrays: dict[str, Any] = {field.name: group[field.name] for field in FIELDS}
    yield (
        OINDEX,
        folder / "cache",
        lambda rows: {name: array.oindex[rows, 0] for name, array in arrays.items()},
    )

    for pool in (0, TS_POOL_BYTES):
        stores = {field.name: open_tensorstore(folder / "cache", field, pool) for field in FIELDS}
        name = "tensorstore" + (f", {pool >> 30} GiB cache pool" if pool else "")
        yield name, folder / "cache", tensorstore_reader(stores)

    yield FILES, folder / "samples", lambda rows: read_samples(folder / "samples", rows)


def h5py_reader(sets: dict[str, Any]) -> Reader:
    """h5py wants growing indices: sorted, read, put back into the order asked for."""

    def read(rows: Rows) -> dict[str, Any]:
        order = np.argsort(rows)
        ascending, back = rows[order], np.argsort(order)
        return {name: of[ascending][back] for name, of in sets.items()}

    return read


def open_tensorstore(cache: Path, field: Field, pool: int) -> Any:
    """One array, read-only, without looking at the files again once they are in the pool."""
    return ts.open(
        {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": f"{cache / field.name}/"},
            "recheck_cached_data": "open",
        },
        read=True,
        context=ts.Context({"cache_pool": {"total_bytes_limit": pool}}),
    ).result()


def tensorstore_reader(stores: dict[str, Any]) -> Reader:
    """All fields are asked for at once, then waited for."""

    def read(rows: Rows) -> dict[str, Any]:
        futures = {name: store[rows, 0].read() for name, store in stores.items()}
        return {name: future.result() for name, future in futures.items()}

    return read


def read_samples(folder: Path, rows: Rows) -> dict[str, Any]:
    """Load each file and stack the tensors."""
    loaded = [torch.load(sample_path(folder, row), weights_only=True) for row in rows.tolist()]
    return {field.name: torch.stack([row[field.name] for row in loaded]) for field in FIELDS}


def main() -> None:
    """Write, check, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, default=16_384, help="rows of the cache (default 16384)"
    )
    parser.add_argument("--out", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--warm", type=int, default=30, help="warm batches of each size")
    parser.add_argument("--cold", type=int, default=5, help="cold batches of each size")
    options = parser.parse_args()
    if options.rows < max(BATCHES):
        parser.error(f"--rows {options.rows}: at least {max(BATCHES)}, one batch")
    if options.out is not None:
        options.out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="dualkd-read-speed-", dir=options.out) as name:
        folder = Path(name)
        print(f"writing {options.rows} rows in six formats to {folder} …", flush=True)
        write_all(folder, options.rows)
        print_results(measure(folder, options.rows, options.warm, options.cold), options.rows)


def measure(
    folder: Path, count: int, warm: int, cold: int
) -> dict[str, dict[tuple[int, str], float]]:
    """Median milliseconds by way, by (batch size, warm or cold)."""
    generator = np.random.default_rng(1)
    ways = list(readers(folder, count))
    warm_up(ways, count)
    times: dict[str, dict[tuple[int, str], list[float]]] = {name: {} for name, _, _ in ways}
    for state, number in (("warm", warm), ("cold", cold)):
        for size in BATCHES:
            for done in range(0, number, TURN):
                print(f"{state}, {size} rows: {done} of {number} batches …", flush=True)
                batches = [
                    generator.choice(count, size, replace=False)
                    for _ in range(min(TURN, number - done) + (AHEAD if state == "warm" else 0))
                ]
                for name, files, read in ways:
                    if state == "cold" and "pool" in name:  # it keeps values in memory of its own
                        continue
                    before = partial(forget_pages, files) if state == "cold" else None
                    taken = times[name].setdefault((size, state), [])
                    taken += times_ms(read, batches, before=before)[
                        AHEAD if state == "warm" else 0 :
                    ]
    return {
        name: {kind: statistics.median(taken) for kind, taken in of.items()}
        for name, of in times.items()
    }


def warm_up(ways: Sequence[tuple[str, Path, Reader]], count: int) -> None:
    """Read every row in every way, and check that they all read the same."""
    for first in range(0, count, max(BATCHES)):
        rows = np.arange(first, min(first + max(BATCHES), count))
        expected: dict[str, bytes] = {}
        for name, _, read in ways:
            values = {key: np.asarray(of).tobytes() for key, of in read(rows).items()}
            expected = expected or values
            if values != expected:
                raise RuntimeError(f"{name} reads other values than {MEMMAP}")


def print_results(found: dict[str, dict[tuple[int, str], float]], count: int) -> None:
    """The table and the requirements."""
    print(f"\n{count} rows of {sum(field.row_bytes for field in FIELDS)} bytes; {machine()}.")
    print("Median ms per batch; in brackets: times raw np.memmap / times cache.read.\n")
    kinds = [(size, state) for state in ("warm", "cold") for size in BATCHES]
    rows = []
    for name, times in found.items():
        cells = [name]
        for kind in kinds:
            if kind not in times:
                cells.append("–")
                continue
            ratios = [times[kind] / found[other][kind] for other in (MEMMAP, OURS)]
            cells.append(f"{times[kind]:.2f} ({ratios[0]:.1f} / {ratios[1]:.1f})")
        rows.append(cells)
    print_table(["", *(f"{state}, {size} rows" for size, state in kinds)], rows)
    print("\nRequirements, warm, batch 256:\n")
    ours, memmap, oindex, files = (
        found[name][256, "warm"] for name in (OURS, MEMMAP, OINDEX, FILES)
    )
    for what, ratio, met in (
        (f"{OURS} / {MEMMAP}, at most 2", ours / memmap, ours <= 2 * memmap),
        (f"{OINDEX} / {OURS}, at least 30", oindex / ours, oindex >= 30 * ours),
        (f"{FILES} / {OURS}, at least 20", files / ours, files >= 20 * ours),
    ):
        print(f"- {what}: {ratio:.2f}, {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    main()
