"""The shape of `extract` at scale, without a dataset: stand-in teachers, the real path.

Samples are read and networks computed by stand-ins that cost next to nothing; all else (tasks,
arrays, checks, files with fsync, commits) is what `extract` does. So the time per row is the path's
own. A run is killed half-way, and taken up again.

    python benchmarks/scale.py                                  # 200,000 samples × 4 views, 7 GB
    python benchmarks/scale.py --samples 40000 --workers 0 1 2 4
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cache import CacheWriter, open_cache
from making import machine, memory, print_table, thirds
from pipeline.config import Run
from pipeline.config_file import load_config
from pipeline.datasets.k400 import class_names
from pipeline.samples import Sample, build_samples, write_samples
from stages import extract as stage
from stages.chunk_arrays import ChunkArrays
from stand_ins import put_stand_ins

ROOT = Path(__file__).parents[1]
SECONDS = 10.0  # in which a killed run must have found its place, at any size
commits: list[float] = []  # seconds of each
EVEN = 1.25  # the time per row of the last samples against that of the first


def make_run(folder: Path, samples: int) -> Run:
    """configs/k400.yaml on so many samples; no video is there, nor asked for."""
    text = (ROOT / "configs" / "k400.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("dim: 64", "dim: 8"),
        ("samples: 2048", "samples: 256"),
        ("max_failed_share: 0.05", "max_failed_share: 0.05\n  gate: {samples: 0}"),
        ("precision: bf16  ", "precision: fp32  "),
    ):
        if old not in text:
            raise ValueError(f"{old!r} is not in configs/k400.yaml")
        text = text.replace(old, new)
    path = folder / "configs" / "k400.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    run = load_config(path)
    rows = [
        Sample(f"{n:08d}_000000_000010", f"train/{n:08d}.mp4", "train", {"action": n % 400})
        for n in range(samples)
    ]
    write_samples(build_samples("k400", {"action": class_names()}, rows), run.samples_path)
    return run


def options(out: Path, views: int, workers: int) -> stage.Options:
    """Of one extraction; 0 workers are this process."""
    return stage.Options(
        out=out,
        views=views,
        limit=None,
        decoders=0,
        batch_size=512,
        replace=False,
        device=torch.device("cpu"),
        workers=workers or None,
    )


def commit_times(out: Path) -> list[float]:
    """When each chunk was committed."""
    return sorted(path.stat().st_mtime for path in (out / "commits").glob("[0-9]*.json"))


def ms_per_row(times: Sequence[float], rows: int) -> float:
    """Between the first and the last of some commits, each of so many rows."""
    return 1000 * (times[-1] - times[0]) / (len(times) - 1) / rows


def extracted(folder: Path, samples: int, views: int, workers: int) -> list[str]:
    """One line: a whole extraction."""
    run, out = make_run(folder, samples), folder / "cache"
    commits.clear()
    started, busy = time.perf_counter(), time.process_time()
    with memory() as resident:
        stage.extract(run, options(out, views, workers))
    wall, busy = time.perf_counter() - started, time.process_time() - busy
    times, chunk = commit_times(out), run.extract.chunk_samples * views
    part = max(2, 10_000 // run.extract.chunk_samples)
    first, last = (ms_per_row(some, chunk) for some in (times[:part], times[-part:]))
    rows = samples * views
    size = sum(open_cache(out).bytes_by_field().values())
    shutil.rmtree(out)
    return [
        str(workers) if workers else "none, this process",
        f"{samples:,}",
        f"{wall:.0f}",
        f"{rows / wall:,.0f}",
        f"{size / wall / 1e6:.0f}",
        f"{first:.3f}",
        f"{last:.3f}",
        f"{last / first:.2f}",
        f"{busy / wall:.2f}",
        f"{1000 * statistics.median(commits):.1f}",
        thirds([each[0] for each in resident]),
        thirds([max(each[1:]) for each in resident if each[1:]]),
    ]


def timed(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same, its seconds entered in `commits`."""

    def clocked(*given: Any) -> None:
        started = time.perf_counter()
        call(*given)
        commits.append(time.perf_counter() - started)

    return clocked


def killed(folder: Path, samples: int, views: int) -> list[str]:
    """One line: a run that is killed half-way, and how soon the next one computes."""
    run, out = make_run(folder, samples), folder / "killed"
    child = subprocess.Popen(
        [sys.executable, __file__, "--child", str(out), "--views", str(views)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"},
        stderr=subprocess.DEVNULL,
    )
    chunks = -(-samples // run.extract.chunk_samples)
    while child.poll() is None and len(commit_times(out)) < max(1, chunks // 2):
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    stood = len(commit_times(out))
    began: list[float] = []
    chunk_arrays: Any = ChunkArrays
    compute = chunk_arrays.compute

    def noted(*given: Any) -> Any:
        began.append(time.perf_counter())
        return compute(*given)

    chunk_arrays.compute = noted
    started = time.perf_counter()
    try:
        stage.extract(run, options(out, views, 0))
    finally:
        chunk_arrays.compute = compute
    if open_cache(out).coverage < 1:
        raise RuntimeError("the cache is not complete")
    shutil.rmtree(out)
    return [f"{samples:,}", f"{stood} of {chunks}", f"{began[0] - started:.2f}"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 200_000])
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    put_stand_ins()
    writer: Any = CacheWriter
    writer.commit = timed(writer.commit)
    if asked.child:
        run = load_config(Path("configs/k400.yaml"))
        stage.extract(run, options(asked.child, asked.views, 0))
        return
    before, lines, kills = Path.cwd(), [], []
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        try:
            for samples in asked.samples:
                kills.append(killed(Path(temporary), samples, asked.views))
            for workers in asked.workers:
                lines.append(extracted(Path(temporary), max(asked.samples), asked.views, workers))
        finally:
            os.chdir(before)
    threads = torch.get_num_threads()
    print(f"\n{asked.views} views, stand-in teachers, {threads} thread(s); {machine()}.\n")
    head = ["workers", "samples", "s", "rows/s", "MB/s", "ms a row, first 10,000 samples"]
    head += ["last 10,000", "ratio", "main process, cores", "ms a commit"]
    print_table([*head, "its memory, MB, by thirds", "greatest worker's"], lines)
    ratio = max(float(line[7]) for line in lines)
    print(f"\n- last / first, at most {EVEN}: {ratio}, {'met' if ratio <= EVEN else 'MISSED'}\n")
    print_table(["samples", "chunks at the kill", "s until the next run computes"], kills)
    slowest = max(float(line[2]) for line in kills)
    verdict = "met" if slowest <= SECONDS else "MISSED"
    print(f"\n- a killed run finds its place in at most {SECONDS:.0f} s: {slowest}, {verdict}")


if __name__ == "__main__":
    main()
