"""`dualkd-cache plan`: what an extraction will take, before anything runs.

Bytes follow from the config. Times are those of a few seconds of decoding, and of the networks with
random weights, on the device at hand, times the number of samples and views.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache import OWN_FIELDS, STATUS_FIELD, Field, TeacherCache, is_cache, open_cache
from pipeline.config import Run
from pipeline.models import VideoModel, create_model
from pipeline.samples import read_samples
from stages.calibration import Calibration
from stages.forecast import Machine, Seconds, Work, forecast
from stages.gate import videos_to_score
from stages.memory import memory_of_chunks
from stages.opening import Wanted
from stages.rows import Networks, ordered_samples
from stages.stored_clips import clip_field
from stages.teachers import Teachers, placed


@dataclass(frozen=True)
class Options:
    """What the command says beside the config; `out` is where a cache may stand already."""

    out: Path
    views: int
    limit: int | None
    decoders: int
    batch_size: int
    seconds: float
    device: torch.device
    workers: int | None = None


def plan(run: Run, options: Options) -> dict[str, Any]:
    """Forecast an extraction, or what is left of one; plain JSON.

    Returns:
        `samples`, `views`, `rows` of the finished cache and its `bytes` (per row, in all, by
        field); `device`, `decoders`, `cores`, `workers`; `standing`: what is there already
        (`place`, `samples`, `views`), or None; `to_make`: `samples` to decode, `views` of each
        teacher, `clip_views`, `bytes`; `memory_bytes` of the
        chunks that are under way at once; `seconds`, see `Seconds`; `gate_videos`; `forecast`, see
        there; `break_even_epochs`, `student_epochs`; `less`: bytes and hours of another cache, with
        fewer views, a coarser grid, fewer dimensions, no clips; empty where one stands.

    Raises:
        cache.IdentityMismatch: the cache at `out` was made from other inputs, but for the weights,
            which are not looked at.
        stages.chunk_arrays.ExtractError: a sample of it is another one now, or it lacks what cannot
            be added.
        stages.calibration.CalibrationError: none of the first samples can be read.
        pipeline.samples.SamplesError: there is no samples table.
    """
    wanted = _wanted(run, options)
    stored = open_cache(options.out) if is_cache(options.out) else None
    if stored is not None:
        wanted = wanted.with_clips_of(stored)
        wanted.check(stored)
    run = wanted.run
    missing = wanted.missing(stored)
    work, fields = _work(wanted, stored, missing), [*OWN_FIELDS, *wanted.fields(stored)]
    anew = wanted.first_samples
    trial = Calibration(
        run,
        anew,
        wanted.networks,
        views=options.views,
        batch_size=options.batch_size,
        seconds=options.seconds,
    )
    seconds = Seconds(
        trial.decode,
        trial.encode(),
        {name: trial.network(name) for name in wanted.networks.by_name},
        trial.store(run.extract.projection),
    )
    cores = os.cpu_count() or 1
    machine = Machine(options.device, min(options.decoders, cores), options.workers or 1)
    views = missing[STATUS_FIELD.name].shape[1]
    samples = len(wanted.new_samples(stored)) + stored.num_samples if stored else len(anew)
    rows, row_bytes = samples * views, sum(field.row_bytes for field in fields)
    chunk_samples = stored.chunk_samples if stored else run.extract.chunk_samples
    return {
        "dataset": run.name,
        "splits": run.extract.splits,
        "samples": samples,
        "views": views,
        "rows": rows,
        "device": str(options.device),
        "decoders": options.decoders,
        "cores": cores,
        "workers": options.workers,
        "bytes": {
            "row": row_bytes,
            "all": rows * row_bytes,
            "by_field": {field.name: rows * field.row_bytes for field in fields},
        },
        "standing": stored
        and {
            "place": stored.place,
            "samples": stored.num_samples,
            "views": stored.num_views,
        },
        "to_make": {
            "samples": work.samples,
            "views": work.views,
            "clip_views": work.clip_views,
            "bytes": sum(int(missing[field.name].sum()) * field.row_bytes for field in fields),
        },
        "memory_bytes": memory_of_chunks(
            min(chunk_samples, samples) * _sample_bytes(missing, fields), options.workers
        ),
        "seconds": asdict(seconds),
        "gate_videos": work.gate_videos,
        "forecast": forecast(work, seconds, machine),
        "break_even_epochs": _break_even(run, samples, views),
        "student_epochs": run.distill.train.epochs,
        "less": {} if stored else _less(wanted, trial, seconds, machine),
    }


def _wanted(run: Run, options: Options) -> Wanted:
    """With random weights: what networks cost does not depend on the weights."""
    table = read_samples(run.samples_path)

    def made(name: str) -> VideoModel:
        return placed(create_model(name, table.heads).eval(), options.device)

    networks = Networks(
        Teachers(made(run.teach.vit.model), made(run.teach.cnn.model)),
        run.extract.clips,
        {name: made(teacher.model) for name, teacher in run.extract.added.items()},
        run.extract.precision,
    )
    samples = ordered_samples(run, table)
    return Wanted(run, table, samples, networks, options.views, options.limit, weights_known=False)


def _sample_bytes(missing: Mapping[str, NDArray[np.bool_]], fields: Sequence[Field]) -> int:
    """Of all that is to be made of a sample, at most."""
    return sum(
        field.row_bytes * int(missing[field.name].sum(axis=1).max(initial=0)) for field in fields
    )


def _work(
    wanted: Wanted, stored: TeacherCache | None, missing: Mapping[str, NDArray[np.bool_]]
) -> Work:
    """What is to be made, as `extract` will find it."""
    samples = missing[STATUS_FIELD.name].shape[0]
    anything = np.any([of_field.any(axis=1) for of_field in missing.values()], axis=0)
    clips = [missing[clip_field(name)] for name in wanted.networks.students]
    views, unscored = wanted.teacher_views(missing), wanted.unscored(stored)
    gate = videos_to_score(wanted.run, wanted.table, max(views.values())) if unscored else 0
    return Work(
        samples=int(anything.sum()),
        views=views,
        clip_views=int(np.any(clips, axis=0).sum()) if clips else 0,
        fitted=0 if stored else min(wanted.run.extract.projection.samples, samples),
        scored=tuple(unscored),
        gate_videos=gate,
    )


def _less(
    wanted: Wanted, trial: Calibration, seconds: Seconds, machine: Machine
) -> dict[str, dict[str, float]]:
    """Bytes and hours of caches that take less."""
    less = {}
    for name, run, views in _with_less(wanted.run, wanted.views):
        networks = replace(wanted.networks, students=run.extract.clips)
        of_less = replace(wanted, run=run, networks=networks, views=views)
        missing, changed = of_less.missing(None), seconds
        if run.extract.projection != wanted.run.extract.projection:
            store = min(seconds.store, trial.store(run.extract.projection))
            changed = replace(seconds, store=store)
        hours = forecast(_work(of_less, None, missing), changed, machine)
        rows = missing[STATUS_FIELD.name].size
        row_bytes = sum(field.row_bytes for field in (*OWN_FIELDS, *of_less.fields()))
        less[name] = {"bytes": rows * row_bytes, "wall_hours": hours["wall_hours"]}
    return less


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


def _break_even(run: Run, samples: int, views: int) -> float:
    """Epochs after which teachers that run in every step would have cost more than the cache."""
    return views + min(run.extract.projection.samples, samples) / samples
