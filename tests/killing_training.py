"""Kills the training of a student again and again: python tests/killing_training.py KILLS SEED.

Runs in a folder with a miniature run up to `extract`. Prints JSON: how each kill came, and what the
undisturbed training and the resumed ones left. Half of the runs are killed at a random moment, half
just before a random file operation in the training's folder.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import chain_making
from killing import FILE_EVENTS, run_in_fork
from pipeline.config import Run
from pipeline.config_file import load_config
from stages.student_training import train_student

TIMED = ("clips_per_sec", "waited")


def train(run: Run, folder: Path, on_event: Callable[[], None] | None = None) -> None:
    """Train with a checkpoint after each step."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and folder.name in str(arguments[0]):
            on_event()  # type: ignore[misc]

    if on_event is not None:
        sys.addaudithook(hook)
    torch.set_num_threads(1)
    train_student(replace(chain_making.job(run, folder=folder), checkpoint_steps=1))


def left(folder: Path) -> dict[str, str]:
    """Digests of the weights, and the log without what a clock says."""
    found = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("last.safetensors", "best.safetensors")
    }
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = [{k: v for k, v in record.items() if k not in TIMED} for record in records]
    epochs = (folder / "dvclive/plots/metrics/ce.tsv").read_text().splitlines()
    return {**found, "log": json.dumps(told), "dvclive": json.dumps(epochs)}


def main(kills: int, seed: int) -> None:
    """Kill until there were `kills` kills; then let the last training end."""
    run, folder, rng = load_config(Path("configs/mini.yaml")), Path("kills"), random.Random(seed)
    folder.mkdir()
    train(run, folder / "warm")  # what is imported late is there in every fork
    gc.freeze()
    events = folder / "events"

    def counted() -> None:
        count = 0

        def on_event() -> None:
            nonlocal count
            count += 1

        train(run, folder / "undisturbed", on_event)
        events.write_text(str(count))

    started = time.monotonic()
    run_in_fork(counted)
    seconds, most = time.monotonic() - started, int(events.read_text())
    done: list[str] = []
    ends: dict[str, dict[str, str]] = {"undisturbed": left(folder / "undisturbed")}
    while len(done) < kills:
        out, ended = folder / f"killed-{len(ends)}", False
        while not ended:
            timed, last = rng.random() < 0.5, rng.randrange(1, most)

            def disturbed(out: Path = out, left: int = last, timed: bool = timed) -> None:
                def on_event() -> None:
                    nonlocal left
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

                train(run, out, None if timed else on_event)

            after = rng.uniform(0, seconds) if timed else None
            ended = run_in_fork(disturbed, after) == 0
            if not ended:
                done.append(f"after {after:.2f} s" if timed else f"at file event {last}")
        ends[out.name] = left(out)
    gc.unfreeze()
    print(json.dumps({"kills": done, "ends": ends, "events": most, "seconds": seconds}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
