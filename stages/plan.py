"""`dualkd-cache plan`: what an extraction will take, before anything runs.

Bytes follow from the config. Times are those of a few seconds of decoding, and of the networks with
random weights, on the device at hand, times the number of samples and views.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from rich import box
from rich.table import Table

from cache import OWN_FIELDS
from pipeline.clips import Read
from pipeline.config import Run
from pipeline.models import Features, VideoModel, create_model
from pipeline.projection import Projection
from pipeline.samples import Samples, read_samples
from stages.fields import cache_fields
from stages.progress import PlainConsole
from stages.rows import (
    Networks,
    drawn_views,
    on_host,
    ordered_samples,
    stored_values,
    stored_values_of_added,
)
from stages.stored_clips import clip_fields
from stages.teachers import Teachers, features, placed
from stages.wording import count, duration, plural, size

_LEAST_SAMPLES = 3  # whose decoding is timed; the first opens libraries, and is not


class PlanError(ValueError):
    """Nothing can be forecast; the message says why."""


@dataclass(frozen=True)
class Options:
    """What the command says beside the config."""

    views: int
    limit: int | None
    decoders: int
    batch_size: int
    seconds: float
    device: torch.device
    workers: int = 1


def plan(run: Run, options: Options) -> dict[str, Any]:
    """Forecast an extraction; plain JSON.

    Returns:
        `samples`, `views`, `rows`; `bytes` (per row, in all, by field); `seconds`: of decoding a
        sample (all its views, one core), of each network per view, of one view's storing;
        `forecast`: `decode_core_hours`, `network_hours`, `fit_hours`, `wall_hours`,
        `decoding_limits` (whether the videos cannot be decoded as fast as the networks take them)
        and `decoders_enough`; `break_even_epochs`, `student_epochs`; `less`: bytes and hours with
        fewer views, a coarser grid, fewer dimensions.

    Raises:
        PlanError: none of the first samples can be read.
        pipeline.samples.SamplesError: there is no samples table.
    """
    table = read_samples(run.samples_path)
    samples = ordered_samples(run, table)
    samples = samples.take(range(min(options.limit or len(samples), len(samples))))
    networks = _networks(run, table, options.device)
    fields = [*OWN_FIELDS, *cache_fields(run, table, networks)]
    row_bytes = {field.name: field.row_bytes for field in fields}
    seconds = _calibrate(run, samples, networks, options)
    rows = len(samples) * options.views
    facts: dict[str, Any] = {
        "dataset": run.name,
        "splits": run.extract.splits,
        "samples": len(samples),
        "views": options.views,
        "rows": rows,
        "device": str(options.device),
        "decoders": options.decoders,
        "workers": options.workers,
        "bytes": {
            "row": sum(row_bytes.values()),
            "all": rows * sum(row_bytes.values()),
            "by_field": {name: rows * each for name, each in row_bytes.items()},
        },
        "seconds": seconds,
        "forecast": _forecast(run, len(samples), options.views, seconds, options),
        "break_even_epochs": _break_even(run, len(samples), options.views),
        "student_epochs": run.distill.train.epochs,
    }
    facts["less"] = _less(run, facts, row_bytes, options)
    return facts


def _networks(run: Run, table: Samples, device: torch.device) -> Networks:
    """The networks with random weights: what they cost does not depend on the weights."""

    def made(name: str) -> VideoModel:
        return placed(create_model(name, table.heads).eval(), device)

    return Networks(
        Teachers(made(run.teach.vit.model), made(run.teach.cnn.model)),
        run.extract.clips,
        {name: made(teacher.model) for name, teacher in run.extract.added.items()},
        run.extract.precision,
    )


def _calibrate(
    run: Run, samples: Samples, networks: Networks, options: Options
) -> dict[str, float]:
    """Seconds: `decode` of a sample, each network and `store` of a view."""
    reads, decode = _timed_reads(run, samples, networks, options)
    seconds = {"decode": decode}
    for name, model in networks.by_name.items():
        each = networks.clips_of(name, reads)

        def forward(size: int, model: VideoModel = model, each: Any = each) -> None:
            batch = each[torch.arange(size) % len(each)]
            features(model, batch, networks.precision).map.flatten()[0].item()  # waits for a GPU

        seconds[name] = _per_clip(forward, options)
    seconds["store"] = _per_clip(_storing(run, networks, reads), options)
    return seconds


def _timed_reads(
    run: Run, samples: Samples, networks: Networks, options: Options
) -> tuple[list[Read], float]:
    """Samples read with all their views by one core, and the mean seconds of each."""
    fields = clip_fields(networks.students, {}, run.extract.clip_format)
    dataset = networks.dataset(run, samples, {field.name: field for field in fields})
    choose = drawn_views(run, range(options.views))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as data decoders have it
    reads: list[Read] = []
    spent: list[float] = []
    begun = time.perf_counter()
    try:
        for row in range(len(samples)):
            started = time.perf_counter()
            read = dataset[row, choose]
            spent.append(time.perf_counter() - started)
            if read.clips is not None:
                reads.append(read)
            enough = len(reads) >= min(_LEAST_SAMPLES, len(samples))
            if enough and time.perf_counter() - begun > options.seconds:
                break
    finally:
        torch.set_num_threads(threads)
    if not reads:
        raise PlanError(
            f"none of {plural(len(spent), 'sample')} below {run.prepare.root} can be read: "
            f"{read.error}"
        )
    # Clips are kept of a few only: those of all would fill the memory.
    return reads[:_LEAST_SAMPLES], float(np.mean(spent[1:] or spent))


def _per_clip(call: Callable[[int], None], options: Options) -> float:
    """Seconds per clip in the largest batch, up to `batch_size`, that fits into the time given."""
    size = 1
    call(size)  # sets things up
    while True:
        started = time.perf_counter()
        call(size)
        spent = time.perf_counter() - started
        if size == options.batch_size or 2 * spent > options.seconds / 2:
            break
        size = min(2 * size, options.batch_size)
        call(size)  # kernels are chosen by shape
    times = [spent]
    while sum(times) < options.seconds / 2:
        started = time.perf_counter()
        call(size)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) / size


def _storing(run: Run, networks: Networks, reads: Sequence[Read]) -> Callable[[int], None]:
    """One batch's maps projected, its outputs as float16 on the host."""
    outputs = {
        name: next(networks.outputs_of(name, networks.clips_of(name, reads[:1])))
        for name in networks.by_name
    }
    vit, cnn = outputs["vit"], outputs["cnn"]
    config = run.extract.projection
    channels = vit.map.shape[1], cnn.map.shape[1]
    projection = Projection(
        kind=config.kind,
        grid=config.grid,
        vit_mean=torch.zeros(channels[0]),
        vit_matrix=torch.zeros(channels[0], config.dim),
        cnn_mean=torch.zeros(channels[1]),
        cnn_matrix=torch.zeros(channels[1], config.dim),
        scale=1.0,
        explained=0.0,
    )

    @cache
    def repeated(size: int) -> list[Features]:
        rows = torch.arange(size, device=vit.map.device) % len(vit.map)
        return [
            Features(
                {head: logits[rows] for head, logits in one.logits.items()},
                one.pooled[rows],
                one.map[rows],
            )
            for one in outputs.values()
        ]

    def store(size: int) -> None:
        of_vit, of_cnn, *others = repeated(size)
        on_host(stored_values(of_vit, of_cnn, projection))
        for name, answer in zip(networks.added, others, strict=True):
            on_host(stored_values_of_added(name, answer))

    return store


def _forecast(
    run: Run, samples: int, views: int, seconds: Mapping[str, float], options: Options
) -> dict[str, Any]:
    """Hours; a GPU computes while decoders decode, a CPU shares its cores between the two.

    Workers share the rows; the projection is fitted before they begin.
    """
    fitted = min(run.extract.projection.samples, samples)
    pair = seconds["vit"] + seconds["cnn"]
    networks = sum(each for name, each in seconds.items() if name != "decode")
    decode = samples * seconds["decode"]
    network = samples * views * networks
    # One view is not a `views`-th of the decoding: most of it is the video's.
    fit_decode, fit_network = fitted * seconds["decode"], fitted * pair
    cores = max(options.decoders, 1)
    if options.device.type == "cpu" or not options.decoders:
        rows, fit = network + decode / cores, fit_network + fit_decode / cores
    else:
        rows, fit = max(network, decode / cores), max(fit_network, fit_decode / cores)
    wall = rows / options.workers + fit
    enough = max(1, int(np.ceil(decode / max(network, 1e-9))))
    return {
        "decode_core_hours": decode / 3600,
        "network_hours": network / 3600,
        "fit_hours": (fit_network + fit_decode / cores) / 3600,
        "wall_hours": wall / 3600,
        "decoding_limits": decode / cores > network,
        "decoders_enough": enough,
    }


def _break_even(run: Run, samples: int, views: int) -> float:
    """Epochs after which teachers that run in every step would have cost more than the cache."""
    return views + min(run.extract.projection.samples, samples) / samples


def _less(
    run: Run, facts: Mapping[str, Any], row_bytes: Mapping[str, int], options: Options
) -> dict[str, dict[str, float]]:
    """Bytes and wall hours with less; the times of less storing are not told apart."""
    whole, hours = facts["bytes"]["all"], facts["forecast"]["wall_hours"]
    rows, config = facts["rows"], run.extract.projection
    less = {}
    if options.views > 1:
        half = options.views // 2
        forecast = _forecast(run, facts["samples"], half, facts["seconds"], options)
        name = f"{half} of {options.views} views"
        less[name] = {"bytes": whole * half / options.views, "wall_hours": forecast["wall_hours"]}
    residual = rows * row_bytes["residual"]
    frames, height, width = config.grid
    if max(height, width) > 1:
        coarse = (frames, -(-height // 2), -(-width // 2))
        share = np.prod(coarse) / np.prod(config.grid)
        name = "residual grid " + "×".join(str(one) for one in coarse)
        less[name] = {"bytes": whole - residual * (1 - share), "wall_hours": hours}
    if config.dim > 1:
        half = config.dim // 2
        saved = residual * (1 - half / config.dim)
        less[f"residual dimension {half}"] = {"bytes": whole - saved, "wall_hours": hours}
    clips = sum(each for name, each in row_bytes.items() if name.startswith("clip/"))
    if clips:
        less["no stored clips"] = {"bytes": whole - rows * clips, "wall_hours": hours}
    return less


def show(facts: Mapping[str, Any]) -> None:
    """Print a plan for people."""
    console = PlainConsole()
    seconds, forecast, sizes = facts["seconds"], facts["forecast"], facts["bytes"]
    splits = ", ".join(facts["splits"])
    about = Table.grid(padding=(0, 2))
    about.add_row(
        "rows",
        f"{count(facts['rows'])}: {count(facts['samples'])} samples ({splits}) × "
        f"{plural(facts['views'], 'view')}",
    )
    about.add_row("cache", f"{size(sizes['all'])}, {count(sizes['row'])} bytes a row")
    about.add_row(
        "decoding",
        f"{1000 * seconds['decode']:.1f} ms a sample with all its views: "
        f"{_time(forecast['decode_core_hours'])} of one core",
    )
    for name, each in seconds.items():
        if name not in ("decode", "store"):
            about.add_row(name, f"{1000 * each:.1f} ms a view on {facts['device']}")
    about.add_row("storing", f"{1000 * seconds['store']:.1f} ms a view")
    about.add_row("networks", f"{_time(forecast['network_hours'])} on {facts['device']}")
    about.add_row("projection", f"{_time(forecast['fit_hours'])} before the first row")
    shared = f" of each of {facts['workers']} workers" if facts["workers"] > 1 else ""
    about.add_row(
        "wall", f"{_time(forecast['wall_hours'])} with --decoders {facts['decoders']}{shared}"
    )
    if forecast["decoding_limits"]:
        enough = plural(forecast["decoders_enough"], "decoder")
        about.add_row("", f"decoding is the limit; {enough} with a core each would be enough")
    even, epochs = facts["break_even_epochs"], facts["student_epochs"]
    about.add_row(
        "break-even",
        f"after {even:.1f} epochs, of one student or of several, teachers in every step would have "
        f"cost more; a student takes {epochs}",
    )
    console.print(about)
    fields = _table("field", "size", "share")
    for name, each in sizes["by_field"].items():
        fields.add_row(name, size(each), f"{each / sizes['all']:.1%}")
    console.print(fields)
    less = _table("with less", "size", "wall")
    for name, one in facts["less"].items():
        less.add_row(name, size(one["bytes"]), _time(one["wall_hours"]))
    console.print(less)


def _table(first: str, *figures: str) -> Table:
    """An empty table of figures by name."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first)
    for name in figures:
        table.add_column(name, justify="right")
    return table


def _time(hours: float) -> str:
    return duration(3600 * hours)
