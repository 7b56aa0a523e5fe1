"""What each codec costs and gives: bytes, time, error, on features of real networks.

The values are those of the demo's two trained teachers on rendered clips (4 views of each), with a
residual of 64 channels on a 4×2×2 grid. They are narrower than MViTv2-S's and X3D-M's, so the rows
of several clips are laid side by side to the payload's widths, no value twice: that keeps the
distribution of the values, which is what a codec sees.

    python benchmarks/field_codecs.py
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import torch
from numpy.typing import NDArray

from cache import BitRound, BloscZstd, Codec, Field, Fixed8, create_cache, open_cache
from making import PAYLOAD, identity, machine, own_arrays, print_table, samples_table
from pipeline.config import Run
from pipeline.config_file import load_config
from stages.extract import Options, extract
from stages.prepare import prepare

ROOT = Path(__file__).parents[1]
BATCH = 64
BITS = (7, 5, 3)
# The other three fields are of the kinds of these.
FIELDS = tuple(field for field in PAYLOAD if field.name != "cnn/logits/action")


def demo_values(folder: Path, clips: int) -> dict[str, NDArray[Any]]:
    """Render clips, run the demo's teachers; field → (clips × views, ...) float16."""
    demo = load_config(ROOT / "configs" / "demo.yaml")
    root = {"root": str(folder / "data"), "splits": {"train": clips, "test": 14}}
    weights = {
        role: teacher.model_copy(update={"weights": str(ROOT / teacher.weights)})
        for role, teacher in (("vit", demo.teach.vit), ("cnn", demo.teach.cnn))
    }
    projection = demo.extract.projection.model_copy(update={"dim": 64})
    stage = {"projection": projection, "clips": []}
    run: Run = demo.model_copy(
        update={
            "prepare": demo.prepare.model_copy(update=root),
            "teach": demo.teach.model_copy(update=weights),
            "extract": demo.extract.model_copy(update=stage),
        }
    )
    before = Path.cwd()
    os.chdir(folder)  # the stages write below the working folder
    try:
        prepare(run)
        options = Options(
            out=folder / "demo",
            views=run.extract.views.count,
            limit=None,
            decoders=0,
            batch_size=32,
            replace=False,
            device=torch.device("cpu"),
        )
        extract(run, options)
    finally:
        os.chdir(before)
    cache = open_cache(folder / "demo")
    samples, views = np.divmod(np.arange(cache.num_samples * cache.num_views), cache.num_views)
    order = np.random.default_rng(0).permutation(len(samples))
    return cache.read(samples[order], views[order], [field.name for field in FIELDS])


def widened(values: NDArray[Any], field: Field) -> NDArray[Any]:
    """Rows of the field's width, out of the narrower ones side by side, none of them twice."""
    flat = values.ravel()
    rows = len(flat) // math.prod(field.shape)
    return flat[: rows * math.prod(field.shape)].reshape(rows, *field.shape)


def codecs_for(values: NDArray[Any]) -> list[Codec | None]:
    """None, the lossless one, three roundings, and 8 bits over a range with some room."""
    limit = float(math.ceil(1.25 * np.abs(values).max()))
    low = 0.0 if values.min() >= 0 else -limit
    return [None, BloscZstd(), *(BitRound(bits) for bits in BITS), Fixed8(low, limit)]


def plain_zstd(values: NDArray[Any], bits: int) -> float:
    """The ratio that bitround gives with numcodecs' zstd behind it, without blosc's bitshuffle."""
    rounded = BitRound(bits).stored(values)
    return len(numcodecs.Zstd(5).encode(rounded)) / rounded.nbytes


def measure(folder: Path, field: Field, values: NDArray[Any], plain_bytes: float) -> list[str]:
    """One line of the table."""
    count = len(values)
    path = folder / f"{field.name.replace('/', '-')}-{field.codec}"
    with create_cache(
        path,
        identity=identity([field]),
        provenance={},
        samples=samples_table(count),
        fields=[field],
        views=1,
        chunk_samples=count,
        projection={},
    ) as writer:
        writer.write_chunk(0, {**own_arrays(range(count), 1), field.name: values[:, None]})
    stored = open_cache(path).bytes_by_field()[field.name] / count
    seconds = [read_epoch(path, field.name, count, seed) for seed in range(5)]
    read = open_cache(path, blocks=True).read(np.arange(count), np.zeros(count, int), [field.name])
    errors = read[field.name].astype(np.float64) - values.astype(np.float64)
    scale = math.sqrt(np.mean(values.astype(np.float64) ** 2))
    return [
        f"`{field.name}`, {field.codec or 'none'}",
        f"{stored:.0f}",
        f"{stored / plain_bytes:.2f}",
        f"{float(np.median(seconds)) * BATCH / count * 1000:.2f}",
        f"{np.abs(errors).max():.4f}",
        f"{math.sqrt(np.mean(errors**2)):.5f}",
        f"{math.sqrt(np.mean(errors**2)) / scale:.2%}",
    ]


def read_epoch(path: Path, name: str, count: int, seed: int) -> float:
    """Seconds to read every row once, shuffled within the chunk, opened and checked before."""
    cache = open_cache(path, blocks=True)
    cache.read([0], [0], ["status"])
    order = np.random.default_rng(seed).permutation(count)
    start = time.perf_counter()
    for first in range(0, count, BATCH):
        rows = order[first : first + BATCH]
        cache.read(rows, np.zeros_like(rows), [name])
    return time.perf_counter() - start


def main() -> None:
    """Render, extract, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=600, help="to render (default 600)")
    options = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory(prefix="dualkd-codecs-") as name:
        folder = Path(name)
        for narrow_name, narrow in demo_values(folder, options.clips).items():
            (field,) = (one for one in FIELDS if one.name == narrow_name)
            values = widened(narrow, field)
            print(
                f"{field.name}: {len(narrow)} rows of {narrow[0].size} values → {len(values)} of "
                f"{values[0].size}, rms {np.sqrt(np.mean(values.astype(float) ** 2)):.3f}, "
                f"{values.min():.2f} … {values.max():.2f}; rounded to {BITS[1]} bits, plain zstd "
                f"instead of blosc: {plain_zstd(values, BITS[1]):.2f}"
            )
            for codec in codecs_for(values):
                packed = Field(field.name, field.dims, field.shape, field.dtype, codec)
                lines.append(measure(folder, packed, values, field.row_bytes))
    print(f"\nOne chunk per field; {machine()}.")
    print(f"ms: per {BATCH} rows of an epoch shuffled within the chunk, its decoding shared out.\n")
    print_table(
        ["field, codec", "bytes per row", "ratio", "ms", "max error", "rms error", "of the rms"],
        lines,
    )


if __name__ == "__main__":
    main()
