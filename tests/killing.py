"""Kills `extract` again and again, in a process of its own: python tests/killing.py KILLS SEED.

Runs in a folder with a miniature run up to `teach`. Prints JSON: what each kill left. Half of the
runs are killed at a random moment, half just before a random file operation inside the cache. Each
is forked from a process that extracted once and has the networks and the clips: what is left to do,
and to be killed in, is the writing.
"""

from __future__ import annotations

import functools
import gc
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

import chain_making
from pipeline import clips
from pipeline.config import AddedTeacher, Run
from pipeline.config_file import load_config
from stages import extract as stage
from stages import making, teachers

SAMPLES = 6
ARRAYS: Any = making.ChunkArrays
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.truncate", "os.rmdir")


def run_in_fork(body: Callable[[], None], kill_after_sec: float | None = None) -> int:
    """Run `body` in a forked process; returns the signal that ended it, 0 where it ended itself."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            body()
        finally:
            os._exit(0)
    if kill_after_sec is not None:
        time.sleep(kill_after_sec)
        os.kill(child, signal.SIGKILL)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def extract(run: Run, out: Path, log: Path, on_event: Callable[[], None] | None = None) -> None:
    """Extract to `out` and let it grow, noting each chunk that is computed in `log`."""

    class Noted(ARRAYS):
        def __init__(self, cache: Any, work: Any, *others: Any) -> None:
            super().__init__(cache, work, *others)
            self.chunk = work.chunk

        def compute(self, *given: Any) -> Any:  # once: a chunk is no more than a batch here
            with log.open("a") as file:
                file.write(f"{self.chunk}\n")
            return super().compute(*given)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FILE_EVENTS and out.name in str(arguments[0]):
            on_event()  # type: ignore[misc]

    making.ChunkArrays = Noted  # type: ignore[misc]
    if on_event is not None:
        sys.addaudithook(hook)
    options = replace(chain_making.options(run), out=out)
    for asked, limit in ((run, SAMPLES - 2), (grown(run), SAMPLES)):
        stage.extract(asked, replace(options, limit=limit))


def grown(run: Run) -> Run:
    """The run with the clips of another student and a third teacher."""
    changes = {
        "clips": [*run.extract.clips, "pytorchvideo/x3d_tiny"],
        "added": {"slow": AddedTeacher(model=run.teach.cnn.model, weights=run.teach.cnn.weights)},
    }
    return run.model_copy(update={"extract": run.extract.model_copy(update=changes)})


def keep(module: Any, name: str) -> None:
    """Keep what a function answers, also for the processes that are forked afterwards."""
    answer, kept = getattr(module, name), {}

    @functools.wraps(answer)
    def once(*given: Any, **options: Any) -> Any:
        key = repr((given, options))
        if key not in kept:
            kept[key] = answer(*given, **options)
        return kept[key]

    setattr(module, name, once)


def commits(out: Path) -> list[str]:
    """The names of the commits that stand."""
    return sorted(path.name for path in (out / "commits").glob("[0-9]*.json"))


def measure(run: Run, folder: Path) -> tuple[int, float]:
    """File events and seconds of a run in a fork, undisturbed like that of `folder/undisturbed`."""

    def counted() -> None:
        count = 0

        def on_event() -> None:
            nonlocal count
            count += 1

        extract(run, folder / "measured", folder / "log", on_event)
        (folder / "events").write_text(str(count))

    started = time.monotonic()
    run_in_fork(counted)
    return int((folder / "events").read_text()), time.monotonic() - started


def main(kills: int, seed: int) -> None:
    """Kill until there were `kills` kills; then let the last cache be finished."""
    run, folder, rng = load_config(Path("configs/mini.yaml")), Path("kills"), random.Random(seed)
    folder.mkdir()
    keep(teachers, "load_weights")
    keep(clips, "read_clips")
    extract(run, folder / "undisturbed", folder / "log")
    gc.freeze()  # else each fork's first collection copies all pages
    events, seconds = measure(run, folder)
    done: list[dict[str, Any]] = []
    caches = 0
    while sum(kill["signal"] == signal.SIGKILL for kill in done) < kills:
        out, log, ended = folder / f"killed-{caches}", folder / "log", False
        while not ended:
            before = commits(out)
            log.write_text("")
            timed = rng.random() < 0.5
            last = rng.randrange(1, events)

            def disturbed(
                out: Path = out, log: Path = log, left: int = last, timed: bool = timed
            ) -> None:
                def on_event() -> None:
                    nonlocal left
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

                extract(run, out, log, None if timed else on_event)

            after = rng.uniform(0, seconds) if timed else None
            ending = run_in_fork(disturbed, after)
            done.append(
                {
                    "cache": out.name,
                    "how": f"after {after:.2f} s" if timed else f"at file event {last}",
                    "signal": ending,
                    "before": before,
                    "after": commits(out),
                    "begun": log.read_text().split(),
                }
            )
            ended = ending == 0
        caches += 1
    gc.unfreeze()
    print(json.dumps({"events": events, "seconds": seconds, "runs": done}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
