"""`dualkd prepare --dataset k400` on a tree of Kinetics-400's size, beside a mere reading of it.

The tree is CVDF's flat layout with empty files, and official CSVs of which 2.4 % have no video. The
reference is what cannot be spared: `os.scandir` over the folders, and `csv` over the CSVs. Both run
in fresh processes, after one run of each that warms the file system's cache.

    python benchmarks/prepare_k400.py
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from making import machine, print_table
from pipeline.datasets.k400 import class_names

ROOT = Path(__file__).parents[1]
SHARES = {"train": 0.80, "val": 0.07, "test": 0.13}
MISSING_EVERY = 41  # 2.4 %; no divisor of the 400 classes
LIMIT_SEC = 15.0

REFERENCE = """
import csv, os
names, rows = set(), 0
for split in ("train", "val", "test"):
    with os.scandir(f"data/k400/{split}") as entries:
        names.update(entry.name for entry in entries)
    with open(f"data/k400/annotations/{split}.csv", newline="") as file:
        rows += sum(1 for _ in csv.reader(file)) - 1
print(len(names), rows)
"""
OURS = """
import sys
from stages.cli import main
sys.argv = ["dualkd", "prepare", "--dataset", "k400"]
main()
"""


def make_tree(root: Path, count: int) -> None:
    """The files and CSVs of `count` rows."""
    names = class_names()
    for split, share in SHARES.items():
        (root / split).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        with (root / "annotations" / f"{split}.csv").open("w", newline="") as file:
            lines = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
            lines.writerow(["label", "youtube_id", "time_start", "time_end", "split", "is_cc"])
            for row in range(round(count * share)):
                start = row % 300
                youtube_id = f"{'-_a'[row % 3]}{split}{row:0{10 - len(split)}d}"
                lines.writerow([names[row % 400], youtube_id, start, start + 10, split, 0])
                if row % MISSING_EVERY:
                    stem = f"{youtube_id}_{start:06d}_{start + 10:06d}"
                    os.close(os.open(root / split / f"{stem}.mp4", os.O_CREAT | os.O_WRONLY))


def timed(code: str, folder: Path, runs: int) -> tuple[float, float]:
    """Median seconds of a fresh Python process, start included: by the clock, and of its CPU."""
    clock, cpu = [], []
    for _ in range(runs + 1):
        start, used = time.perf_counter(), _children_sec()
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        clock.append(time.perf_counter() - start)
        cpu.append(_children_sec() - used)
    return statistics.median(clock[1:]), statistics.median(cpu[1:])


def _children_sec() -> float:
    """CPU seconds of all processes that this one started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Make the tree, time both, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=240_000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "configs").mkdir()
        shutil.copy(ROOT / "configs" / "k400.yaml", folder / "configs")
        make_tree(folder / "data" / "k400", arguments.rows)
        reference = timed(REFERENCE, folder, arguments.runs)
        ours = timed(OURS, folder, arguments.runs)
        account = json.loads((folder / "outputs" / "k400" / "prepare.json").read_text())
    print(
        f"{account['listed']:,} rows listed, {account['found']:,} found, "
        f"{account['missing']:,} missing; {machine()}"
    )
    print()
    ways = {
        "os.scandir and csv, the reference": reference,
        "dualkd prepare --dataset k400": ours,
    }
    rows = [
        (name, f"{clock:.2f}", f"{cpu:.2f}", f"{cpu / reference[1]:.1f}")
        for name, (clock, cpu) in ways.items()
    ]
    print_table(["a fresh process", "seconds", "CPU seconds", "× the reference's CPU"], rows)
    print()
    verdict = "yes" if ours[0] < LIMIT_SEC else "no"
    print(f"- a table in less than {LIMIT_SEC:.0f} s: {verdict}, {ours[0]:.1f} s")


if __name__ == "__main__":
    main()
