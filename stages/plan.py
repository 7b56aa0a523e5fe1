"""`dualkd-cache plan`: what an extraction will take, before anything runs.

Bytes follow from the config. Times are those of a few seconds of decoding, and of the networks with
random weights, on the device at hand, times the number of samples and views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from cache import OWN_FIELDS
from pipeline.config import Run
from pipeline.models import VideoModel, create_model
from pipeline.samples import Samples, read_samples
from stages.calibration import Calibration
from stages.fields import cache_fields
from stages.gate import videos_to_score
from stages.rows import Networks, ordered_samples
from stages.teachers import Teachers, placed


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


@dataclass(frozen=True)
class Seconds:
    """What the parts take.

    Attributes:
        decode: a sample with all its views, on one core.
        encode: the stored clips of a view as JPEG, on one core.
        networks: each teacher's forward pass over a view.
        store: a view's outputs being projected and fetched.
    """

    decode: float
    encode: float
    networks: Mapping[str, float]
    store: float


def plan(run: Run, options: Options) -> dict[str, Any]:
    """Forecast an extraction; plain JSON.

    Returns:
        `samples`, `views`, `rows`; `bytes` (per row, in all, by field); `seconds`, see `Seconds`;
        `gate_videos`; `forecast`: `decode_core_hours` (with encoding), `network_hours` (with
        storing), `gate_hours`, `fit_hours`, `wall_hours`, `decoding_limits` (whether the videos
        cannot be decoded as fast as the networks take them) and `decoders_enough`;
        `break_even_epochs`, `student_epochs`; `less`: bytes and hours with fewer views, a coarser
        grid, fewer dimensions, no clips.

    Raises:
        stages.calibration.CalibrationError: none of the first samples can be read.
        pipeline.samples.SamplesError: there is no samples table.
    """
    table = read_samples(run.samples_path)
    samples = ordered_samples(run, table)
    samples = samples.take(range(min(options.limit or len(samples), len(samples))))
    networks = _networks(run, table, options.device)
    trial = Calibration(
        run,
        samples,
        networks,
        views=options.views,
        batch_size=options.batch_size,
        seconds=options.seconds,
    )
    seconds = Seconds(
        trial.decode,
        trial.encode(),
        {name: trial.network(name) for name in networks.by_name},
        trial.store(run.extract.projection),
    )
    rows = len(samples) * options.views
    gate_videos = videos_to_score(run, table, rows)
    row_bytes = _row_bytes(run, table, networks)
    less = {}
    for name, of_less, views in _with_less(run, options.views):
        changed = seconds
        if of_less.extract.projection != run.extract.projection:
            store = min(seconds.store, trial.store(of_less.extract.projection))
            changed = replace(seconds, store=store)
        if not of_less.extract.clips:
            changed = replace(seconds, encode=0.0)
        hours = forecast(of_less, len(samples), views, gate_videos, changed, options)
        less[name] = {
            "bytes": len(samples) * views * sum(_row_bytes(of_less, table, networks).values()),
            "wall_hours": hours["wall_hours"],
        }
    return {
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
        "seconds": asdict(seconds),
        "gate_videos": gate_videos,
        "forecast": forecast(run, len(samples), options.views, gate_videos, seconds, options),
        "break_even_epochs": _break_even(run, len(samples), options.views),
        "student_epochs": run.distill.train.epochs,
        "less": less,
    }


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


def _row_bytes(run: Run, table: Samples, networks: Networks) -> dict[str, int]:
    """Of a row, by field."""
    stored = replace(networks, students=run.extract.clips)
    fields = [*OWN_FIELDS, *cache_fields(run, table, stored)]
    return {field.name: field.row_bytes for field in fields}


def _with_less(run: Run, views: int) -> Iterator[tuple[str, Run, int]]:
    """What would take less: in words, the config, and the views."""
    projection = run.extract.projection

    def changed(**values: Any) -> Run:
        return run.model_copy(update={"extract": run.extract.model_copy(update=values)})

    if views > 1:
        yield f"{views // 2} of {views} views", run, views // 2
    frames, height, width = projection.grid
    if max(height, width) > 1:
        grid = (frames, math.ceil(height / 2), math.ceil(width / 2))
        name = "residual grid " + "×".join(map(str, grid))
        yield name, changed(projection=projection.model_copy(update={"grid": grid})), views
    if projection.dim > 1:
        dim = projection.dim // 2
        smaller = projection.model_copy(update={"dim": dim})
        yield f"residual dimension {dim}", changed(projection=smaller), views
    if run.extract.clips:
        yield "no stored clips", changed(clips=[]), views


def forecast(
    run: Run, samples: int, views: int, gate_videos: int, seconds: Seconds, options: Options
) -> dict[str, Any]:
    """Hours; the gate and the fit of the projection come before the rows, which workers share.

    Args:
        run: the config.
        samples: how many.
        views: of each.
        gate_videos: on how many the teachers are scored.
        seconds: of the parts.
        options: device, decoders and workers.
    """
    fitted = min(run.extract.projection.samples, samples)
    teachers = sum(seconds.networks.values())
    pair = seconds.networks["vit"] + seconds.networks["cnn"]
    decode = samples * (seconds.decode + views * seconds.encode)
    network = samples * views * (teachers + seconds.store)
    # One view is not a `views`-th of the decoding: most of it is the video's.
    gate = _wall(gate_videos * seconds.decode, gate_videos * teachers, options)
    fit = _wall(fitted * seconds.decode, fitted * pair, options)
    wall = gate + fit + _share(options) * _wall(decode, network, options)
    return {
        "decode_core_hours": decode / 3600,
        "network_hours": network / 3600,
        "gate_hours": gate / 3600,
        "fit_hours": fit / 3600,
        "wall_hours": wall / 3600,
        "decoding_limits": decode / max(options.decoders, 1) > network,
        "decoders_enough": max(1, math.ceil(decode / max(network, 1e-9))),
    }


def _wall(decode: float, network: float, options: Options) -> float:
    """A GPU computes while decoders decode; a CPU shares its cores between the two."""
    decode /= max(options.decoders, 1)
    if options.device.type == "cpu" or not options.decoders:
        return network + decode
    return max(network, decode)


def _share(options: Options) -> float:
    """Of the rows' time, with workers: each has a GPU, but a CPU was tried with all its cores."""
    return 1.0 if options.device.type == "cpu" else 1 / options.workers


def _break_even(run: Run, samples: int, views: int) -> float:
    """Epochs after which teachers that run in every step would have cost more than the cache."""
    return views + min(run.extract.projection.samples, samples) / samples
