"""How long `dualkd predict` takes from its start to the answer for a short video.

Each run is a fresh process, and the reference is one too: importing torch and torchvision, which
whatever builds a network begins with. The ways take turns. Cold: before each run the files of the
installed packages, of the model and the video are dropped from the page cache, but for what some
process has mapped, as this one has numpy.

    python benchmarks/start_up.py STUDENT.onnx STUDENT.safetensors --video CLIP.mp4
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from making import machine, print_table

ROOT = Path(__file__).parents[1]
LIMIT_SEC = 3.0
REFERENCE = "python -c 'import torch, torchvision'"
_OURS = "from stages.cli import main; main()"


def timed(arguments: Sequence[str]) -> tuple[float, float]:
    """Seconds of a fresh Python process, start included: by the clock, and of its CPU.

    Raises:
        RuntimeError: it failed.
    """
    start, used = time.perf_counter(), _children_sec()
    done = subprocess.run(
        [sys.executable, "-c", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return time.perf_counter() - start, _children_sec() - used


def _children_sec() -> float:
    """CPU seconds of all processes that this one started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def take_turns(
    ways: Mapping[str, Sequence[str]], runs: int, cold: Sequence[Path]
) -> dict[str, tuple[float, float]]:
    """The medians of each way; the first run of each makes bytecode and is not counted.

    Args:
        ways: by name, what Python is given after `-c`.
        runs: of each.
        cold: files that are dropped from the page cache before each run.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, arguments in ways.items():
            drop(cold)
            taken = timed(arguments)
            if run:
                found[name].append(taken)
    return {
        name: (statistics.median(clock), statistics.median(cpu))
        for name, (clock, cpu) in ((name, zip(*of, strict=True)) for name, of in found.items())
    }


def drop(files: Sequence[Path]) -> None:
    """Drop files from the page cache, but for what some process has mapped."""
    for path in files:
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def main() -> None:
    """Time all ways, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, help="students, exported or saved")
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--cold-runs", type=int, default=3)
    options = parser.parse_args()
    ways = {REFERENCE: ["import torch, torchvision"]}
    for model in options.models:
        ways[f"dualkd predict, {model.name}"] = [_OURS, "predict", str(model), str(options.video)]
    files = [*Path(sysconfig.get_path("platlib")).rglob("*"), *options.models, options.video]
    rows = {name: [f"`{name}`"] for name in ways}
    met: dict[tuple[str, str], float] = {}
    for kind, runs in (("warm", options.runs), ("cold", options.cold_runs)):
        found = take_turns(ways, runs, files if kind == "cold" else []) if runs else {}
        for name, (clock, cpu) in found.items():
            rows[name] += [f"{clock:.2f} ({clock / found[REFERENCE][0]:.2f})", f"{cpu:.2f}"]
            met[kind, name] = clock
    print(f"{machine()}, median of {options.runs} warm and {options.cold_runs} cold runs")
    print("In brackets: times the reference, the first line.\n")
    headings = ["a fresh process", "warm, s", "CPU s", "cold, s", "CPU s"]
    print_table(headings[: len(rows[REFERENCE])], list(rows.values()))
    print()
    for (kind, name), clock in met.items():
        if name != REFERENCE:
            verdict = "met" if clock < LIMIT_SEC else "not met"
            print(f"- {name}, {kind}, less than {LIMIT_SEC:.0f} s: {clock:.2f}, {verdict}")


if __name__ == "__main__":
    main()
