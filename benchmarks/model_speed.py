"""Forward pass of the networks and training step of the students: what each way of running gains.

The ways take turns; the reference is eager float32 with contiguous clips, in the same process.

    python benchmarks/model_speed.py                # the paper's networks
    python benchmarks/model_speed.py --models all --compile  # which takes minutes each on a CPU
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from making import machine, print_table
from pipeline.models import (
    REGISTRY,
    UnknownModelError,
    VideoModel,
    create_model,
    model_entry,
)

PAPER = (
    "torchvision/mvit_v2_s",
    "pytorchvideo/x3d_m",
    "pytorchvideo/x3d_s",
    "pytorchvideo/slowfast_r50",
    "pytorchvideo/slowfast_r101",
)
STUDENTS = ("pytorchvideo/x3d_s", "pytorchvideo/slowfast_r50")


@dataclass(frozen=True)
class Way:
    """One way to run a network."""

    name: str
    channels_last: bool = False
    bf16: bool = False
    compiled: bool = False


EAGER = Way("eager fp32")
WAYS = (
    EAGER,
    Way("channels_last_3d", channels_last=True),
    Way("bf16", bf16=True),
    Way("bf16, channels_last_3d", channels_last=True, bf16=True),
    Way("compiled, channels_last_3d", channels_last=True, compiled=True),
    Way("compiled, bf16, channels_last_3d", channels_last=True, bf16=True, compiled=True),
)


def laid_out(tensors: Tensor | nn.Module, way: Way) -> Any:
    """A network or clips in the memory format of a way."""
    layout = torch.channels_last_3d if way.channels_last else torch.contiguous_format
    return tensors.to(memory_format=layout)


def forward(model: VideoModel, clips: Tensor, way: Way) -> Callable[[], object]:
    """One pass in evaluation mode, ready to be timed."""
    net = laid_out(model.eval(), way)
    call = torch.compile(net.features) if way.compiled else net.features
    batch = laid_out(clips, way)

    @torch.inference_mode()
    def run() -> object:
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=way.bf16):
            return call(batch)

    return run


def training_step(model: VideoModel, clips: Tensor, way: Way) -> Callable[[], object]:
    """Forward, cross-entropy, backward, AdamW; ready to be timed."""
    net = laid_out(model.train(), way)
    call = torch.compile(net) if way.compiled else net
    batch = laid_out(clips, way)
    labels = torch.arange(len(clips), device=clips.device)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-5)

    def run() -> object:
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=way.bf16):
            logits = call(batch)
        loss = functional.cross_entropy(logits.float(), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return loss

    return run


def measure(
    make: Callable[[VideoModel, Tensor, Way], Callable[[], object]],
    name: str,
    ways: Iterable[Way],
    options: argparse.Namespace,
) -> dict[Way, float]:
    """Median milliseconds per clip by way; ways that cannot run are left out and told."""
    device = torch.device(options.device)
    ready = {}
    for way in ways:
        torch.manual_seed(0)
        model = create_model(name, 400).to(device)
        clip = model.clip
        if options.tiny and "mvit" not in name:  # those take one size only
            clip = replace(clip, frames=8, size=64)
        clips = torch.randn(options.batch, 3, clip.frames, clip.size, clip.size, device=device)
        run = make(model, clips, way)
        try:
            for _ in range(2):  # sets things up, compiles
                run()
        except Exception as error:  # no compiler, no such kernel: said, and the others go on
            print(f"- {name}: {way.name} cannot run: {type(error).__name__}: {str(error)[:200]}")
            continue
        ready[way] = run
    seconds: dict[Way, list[float]] = {way: [] for way in ready}
    for _ in range(options.repeats):
        for way, run in ready.items():
            seconds[way].append(timed(run, device))
    torch.compiler.reset()
    return {way: 1000 * statistics.median(of) / options.batch for way, of in seconds.items()}


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def table(
    title: str,
    make: Callable[[VideoModel, Tensor, Way], Callable[[], object]],
    names: Iterable[str],
    options: argparse.Namespace,
) -> None:
    """Measure and print one table."""
    ways = [way for way in WAYS if options.compile or not way.compiled]
    rows = []
    for name in names:
        ms = measure(make, name, ways, options)
        eager = ms.get(EAGER)
        cells = ["–" if eager is None else f"{eager:.1f}"]
        for way in ways[1:]:
            if way not in ms:
                cells.append("–")
            elif eager is None:
                cells.append(f"{ms[way]:.1f} ms")
            else:
                cells.append(f"{eager / ms[way]:.2f}×")
        rows.append([f"`{name}`", *cells])
    print(f"\n{title}\n")
    print_table(["", "eager fp32, ms", *(way.name for way in ways[1:])], rows)


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(PAPER), help="names, or all")
    parser.add_argument("--students", nargs="*", default=list(STUDENTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, help="clips at once; 16 on a GPU, 2 on a CPU")
    parser.add_argument("--repeats", type=int, help="20 on a GPU, 5 on a CPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--tiny", action="store_true", help="clips of 8 × 64 × 64: proves nothing")
    options = parser.parse_args()
    names = list(REGISTRY) if options.models == ["all"] else options.models
    try:
        for name in [*names, *options.students]:
            model_entry(name)
    except UnknownModelError as error:
        parser.error(str(error))
    on_gpu = torch.device(options.device).type == "cuda"
    options.batch = options.batch or (16 if on_gpu else 2)
    options.repeats = options.repeats or (20 if on_gpu else 5)
    chip = torch.cuda.get_device_name() if on_gpu else torch.backends.cpu.get_cpu_capability()
    print(f"{machine()}\n{chip}, torch {torch.__version__}, {torch.get_num_threads()} threads,")
    print(f"batches of {options.batch}, median of {options.repeats}.")
    table("Forward pass, per clip; × is how much faster than eager fp32.", forward, names, options)
    if options.students:
        table("Training step, per clip.", training_step, options.students, options)


if __name__ == "__main__":
    main()
