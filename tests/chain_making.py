"""A miniature run for the tests of the stages: real rendered videos, random teachers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch

from cache import open_cache
from pipeline.config import Run, Teacher
from pipeline.config_file import load_config
from pipeline.models import create_model
from pipeline.objective import LABELS_ONLY
from pipeline.resuming import Past
from pipeline.samples import Samples, read_samples, write_samples
from pipeline.weights import load_weights, save_weights
from stages.distill import with_weights
from stages.extract import Options
from stages.feed import used_part
from stages.student_training import Job, train_student

CONFIG = """
dataset: mini
prepare: {source: figures, root: data/mini, seed: 3, splits: {train: 14, test: 14}}
teach:
  seed: 0
  pool: 14
  scale: [0.7, 1.0]
  vit:
    model: torchvision/mvit_tiny
    weights: configs/mini/vit.safetensors
    train: &recipe {epochs: 1, batch_size: 7, learning_rate: 1.0e-3, weight_decay: 0.05,
                    warmup_share: 0.1, clip_norm: 1.0, label_smoothing: 0.0, dropout: 0.1}
  cnn: {model: pytorchvideo/x3d_tiny, weights: configs/mini/cnn.safetensors, train: *recipe}
extract:
  splits: [train]
  views: {count: 2, seed: 0, scale: [0.7, 1.0], span_sec: 1.4, flip: false}
  projection: {kind: aligned, dim: 4, grid: [4, 2, 2], ridge: 1.0e-3, samples: 14, seed: 0}
  clips: [pytorchvideo/x3d_nano]
  chunk_samples: 5
  max_failed_share: 0.5
distill:
  student: pytorchvideo/x3d_nano
  seed: 0
  train: *recipe
  weights: {kd: 1.0, sdd: 0.1, rkd: 0.1}
  temperature: 2.0
evaluate: {split: test}
"""


def write_config(folder: Path, *changes: tuple[str, str]) -> Run:
    """Write configs/mini.yaml below `folder`, with some text replaced, and load it."""
    text = CONFIG
    for old, new in changes:
        if old not in text:
            raise ValueError(f"{old!r} is not in the miniature config")
        text = text.replace(old, new)
    path = folder / "configs" / "mini.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return load_config(path)


def write_teachers(run: Run, classes: int = 14) -> None:
    """Random weights for both teachers, the same each time."""
    torch.manual_seed(0)
    for teacher in (run.teach.vit, run.teach.cnn):
        save_weights(
            create_model(teacher.model, classes), Path(teacher.weights), {"made": "random"}
        )


def nudge_weights(teacher: Teacher) -> None:
    """Change a teacher's weights file a little."""
    model = load_weights(teacher.model, {"action": 14}, Path(teacher.weights))
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    save_weights(model, Path(teacher.weights), {})


def options(run: Run, *, replace: bool = False, views: int | None = None) -> Options:
    """What `dualkd-cache extract` passes on without options."""
    return Options(
        out=run.cache_path,
        views=views or run.extract.views.count,
        limit=None,
        decoders=0,
        batch_size=8,
        replace=replace,
        device=torch.device("cpu"),
    )


def job(run: Run, variant: str = "student", folder: str | Path = "trained") -> Job:
    """What `dualkd distill` has trained for one of the two."""
    cache = open_cache(run.cache_path)
    trained = run if variant == "student" else with_weights(run, LABELS_ONLY)
    return Job(
        name=variant,
        run=trained,
        cache=cache,
        part=used_part(run, cache),
        folder=Path(folder),
        device="cpu",
        threads=1,
        decoders=0,
        checkpoint_steps=1000,
    )


def in_turn(jobs: Sequence[Job]) -> list[Past]:
    """Train each in this process: two more would take longer to start than to train."""
    return [train_student(one) for one in jobs]


def replace_column(run: Run, column: str, row: int, value: object) -> str:
    """Change one cell of the samples table; returns the sample's id."""
    samples = read_samples(run.samples_path)
    values = samples.table[column].to_pylist()
    values[row] = value
    place = samples.table.column_names.index(column)
    array = pa.array(values, samples.table[column].type)
    table = samples.table.set_column(place, column, array)
    write_samples(Samples(samples.dataset, samples.classes, table), run.samples_path)
    return str(samples.table["sample_id"][row].as_py())
