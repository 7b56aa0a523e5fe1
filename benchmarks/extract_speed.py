"""`extract` against the bare forward passes of its teachers, and against what `plan` said.

The real command's own code, on videos made here (10 s of 340×256 H.264), with the teachers of
configs/k400.yaml at full size and random weights, or with the demo's. The reference is both
teachers over the same clips, decoded and laid out before, nothing stored. Both take turns.

    python benchmarks/extract_speed.py                # about 10 minutes on two cores
    python benchmarks/extract_speed.py --config demo --samples 200 --batch-size 32
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from decode import make_video
from making import machine, memory, print_table, thirds
from pipeline.clips import ClipReader, Request, in_batches
from pipeline.config import Run
from pipeline.config_file import load_config
from pipeline.datasets.figures import CLASSES
from pipeline.datasets.k400 import class_names
from pipeline.models import create_model
from pipeline.samples import Sample, build_samples, read_samples, write_samples
from pipeline.weights import save_weights
from stages import extract as stage
from stages import plan as planning
from stages.prepare import prepare
from stages.rows import Networks, drawn_views, ordered_samples
from stages.teachers import features, load_teachers

ROOT = Path(__file__).parents[1]
MOST = 1.1  # of the bare forward passes
NEAR = 0.2  # of the forecast


def full_size_run(folder: Path, samples: int) -> Run:
    """configs/k400.yaml on a few videos that are listed again and again, with random weights."""
    text = (ROOT / "configs" / "k400.yaml").read_text(encoding="utf-8")
    for role in ("vit", "cnn"):
        text = text.replace("weights: published", f"weights: {role}.safetensors", 1)
    text = text.replace("samples: 2048", "samples: 12").replace(
        "chunk_samples: 1024", "chunk_samples: 8"
    )
    run = written(folder, "k400", text)
    classes = class_names()
    root = Path(run.prepare.root)
    root.mkdir(parents=True)
    for name in ("a.mp4", "b.mp4"):
        make_video(root / name, size=(340, 256), seconds=10, group=250)
    rows = [
        Sample(f"{number}", "ab"[number % 2] + ".mp4", "train", {"action": number % len(classes)})
        for number in range(samples)
    ]
    write_samples(build_samples("k400", {"action": classes}, rows), run.samples_path)
    for number, teacher in enumerate((run.teach.vit, run.teach.cnn)):
        torch.manual_seed(number)
        save_weights(create_model(teacher.model, len(classes)), Path(teacher.weights), {})
    return run


def demo_run(folder: Path, samples: int) -> Run:
    """configs/demo.yaml on fewer of its videos."""
    text = (ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8")
    text = text.replace("train: 600, test: 600", f"train: {samples}, test: {len(CLASSES)}")
    text = text.replace("configs/demo/", f"{ROOT}/configs/demo/")
    text = text.replace("samples: 300, seed", f"samples: {samples // 2}, seed")
    run = written(folder, "demo", text)
    prepare(run)
    return run


def written(folder: Path, name: str, text: str) -> Run:
    """A config below a folder."""
    path = folder / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return load_config(path)


@contextmanager
def timed(module: Any, name: str, seconds: list[float]) -> Iterator[None]:
    """Note how long each call of a function takes."""
    real: Callable[..., Any] = getattr(module, name)

    def clocked(*given: Any, **named: Any) -> Any:
        started = time.perf_counter()
        answer = real(*given, **named)
        seconds.append(time.perf_counter() - started)
        return answer

    setattr(module, name, clocked)
    try:
        yield
    finally:
        setattr(module, name, real)


class Bare:
    """Both teachers over the clips of all samples, which are decoded beforehand."""

    def __init__(self, run: Run, options: stage.Options) -> None:
        table = read_samples(run.samples_path)
        samples = ordered_samples(run, table)
        networks = Networks(
            load_teachers(run, table, options.device), precision=run.extract.precision
        )
        dataset = networks.dataset(run, samples)
        requests: list[Request] = [
            (row, drawn_views(run, range(options.views))) for row in range(len(samples))
        ]
        size = max(1, options.batch_size // options.views)
        reads = ClipReader(dataset, options.decoders).read(in_batches(requests, size))
        self._networks, self._size = networks, options.batch_size
        self._batches = [
            {name: networks.clips_of(name, batch) for name in networks.by_name} for batch in reads
        ]

    def seconds(self) -> float:
        """Of one pass over all of them."""
        started = time.perf_counter()
        for batch in self._batches:
            for name, clips in batch.items():
                for part in clips.split(self._size):  # type: ignore[no-untyped-call]
                    model = self._networks.by_name[name]
                    last = features(model, part, self._networks.precision).pooled
        last.sum().item()  # waits for a GPU
        return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=("k400", "demo"), default="k400")
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--decoders", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="as of `plan`")
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        try:
            measure(asked, Path(temporary))
        finally:
            os.chdir(before)


def measure(asked: argparse.Namespace, folder: Path) -> None:
    """All of it, below a folder."""
    make = full_size_run if asked.config == "k400" else demo_run
    run = make(folder, asked.samples)
    options = stage.Options(
        out=folder / "cache",
        views=asked.views,
        limit=None,
        decoders=asked.decoders,
        batch_size=asked.batch_size,
        replace=False,
        device=torch.device(asked.device),
    )
    forecast = planning.plan(
        run,
        planning.Options(
            out=options.out,
            views=asked.views,
            limit=None,
            decoders=asked.decoders,
            batch_size=asked.batch_size,
            seconds=asked.seconds,
            device=options.device,
        ),
    )
    hours_planned = forecast["forecast"]["wall_hours"] - forecast["forecast"]["gate_hours"]
    bare = Bare(run, options)
    bare.seconds()  # the first pass sets things up
    fits: list[float] = []
    loops: list[float] = []
    whole, references, resident = [], [], []
    for turn in range(asked.repeats):
        references.append(bare.seconds())
        with (
            timed(stage, "_fit_projection", fits),
            timed(stage, "_extract_chunks", loops),
            memory() as of_run,
        ):
            started = time.perf_counter()
            stage.extract(run, replace(options, out=folder / f"cache-{turn}"))
            whole.append(time.perf_counter() - started)
        resident.append(thirds([sum(each) for each in of_run]))
    rows = asked.samples * asked.views
    print(
        f"\n{asked.samples} samples × {asked.views} views through {run.teach.vit.model} and "
        f"{run.teach.cnn.model}, {run.extract.precision}, on {asked.device}, batches of "
        f"{asked.batch_size}, --decoders {asked.decoders}, {torch.get_num_threads()} thread(s); "
        f"{machine()}.\n"
    )
    fit, loop, reference, all_of_it = map(statistics.median, (fits, loops, references, whole))
    print_table(
        ["", "s", "ms a view"],
        [
            ["both teachers over the same clips, bare", f"{reference:.1f}", ms(reference, rows)],
            ["`extract`: its chunks", f"{loop:.1f}", ms(loop, rows)],
            ["`extract`: the projection before them", f"{fit:.1f}", "–"],
            ["`extract`: all, with loading and checking", f"{all_of_it:.1f}", ms(all_of_it, rows)],
            [
                "`plan`: decoding, all cores together",
                f"{3600 * forecast['forecast']['decode_core_hours']:.1f}",
                "–",
            ],
            [
                "`plan`: projection and chunks",
                f"{3600 * hours_planned:.1f}",
                "–",
            ],
        ],
    )
    ratio = loop / reference
    print(
        f"\n- chunks / bare forward, at most {MOST}: {ratio:.3f}, "
        f"{'met' if ratio <= MOST else 'MISSED'}"
    )
    share = hours_planned * 3600 / (fit + loop)
    print(
        f"- forecast / projection and chunks, within {NEAR:.0%}: {share:.2f}, "
        f"{'met' if abs(share - 1) <= NEAR else 'MISSED'}"
    )
    print(f"- decoders that would be enough: {forecast['forecast']['decoders_enough']}")
    print(f"- greatest memory in each third of a run, MB: {'; '.join(resident)}")


def ms(seconds: float, views: int) -> str:
    """Milliseconds a view."""
    return f"{1000 * seconds / views:.0f}"


if __name__ == "__main__":
    main()
