"""Stage `teach`: the two teachers, loaded or trained, and scored before they are relied on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.clips import ClipDataset, DrawnViews, Request, iterate
from pipeline.config import Run, Teacher
from pipeline.datasets import figures
from pipeline.metrics import top_k
from pipeline.models import create_model
from pipeline.samples import Samples, build_samples, read_samples
from pipeline.training import (
    LABELS_ONLY,
    Batch,
    Method,
    epoch_batches,
    steps_in_epoch,
    train,
)
from pipeline.views import ViewRule
from pipeline.weights import save_weights, weights_digest
from stages.evaluate import score
from stages.files import write_json
from stages.prepare import render_split
from stages.progress import console, meter
from stages.teachers import load_teachers

_POOL_SEED_OFFSET = 1_000_003  # the pool never shares a video with the splits


def teach(
    run: Run, *, train_them: bool, only: str | None, device: torch.device, workers: int
) -> None:
    """Train the teachers if asked, then score both on the test split and write the scores."""
    samples = read_samples(run.samples_path)
    teachers = {"vit": run.teach.vit, "cnn": run.teach.cnn}
    if train_them:
        pool = _render_pool(run)
        for role, teacher in teachers.items():
            if only in (None, role):
                _train_teacher(run, role, teacher, pool, device, workers)
    test = samples.of_splits([run.evaluate.split])
    models = load_teachers(run, samples, device).by_role()
    scored = score(models, Path(run.prepare.root), test, workers, batch_size=32)
    head = next(iter(samples.heads))
    labels = test.table[f"label_{head}"].to_numpy()[scored.rows]
    scores = {}
    for role, model in models.items():
        scores[role] = {
            "model": model.name,
            "weights_sha256": weights_digest(model.net),
            "top1": top_k(scored.logits[role], labels, 1),
            "top5": top_k(scored.logits[role], labels, 5),
            "videos": len(labels),
            "unreadable": len(test) - len(labels),
        }
        console.print(f"{role} {model.name}: top-1 {scores[role]['top1']:.1%}")
    write_json(run.outputs / "teach.json", scores)


def _render_pool(run: Run) -> Samples:
    root = Path(run.prepare.root) / "pool"
    seed = run.teach.seed + _POOL_SEED_OFFSET
    rows = render_split(root, seed=seed, split="pool", count=run.teach.pool)
    return build_samples(run.dataset, {"action": list(figures.CLASSES)}, rows)


def _train_teacher(
    run: Run, role: str, teacher: Teacher, pool: Samples, device: torch.device, workers: int
) -> None:
    """Train on the pool, a fresh view of every video in each epoch."""
    recipe = teacher.train
    torch.manual_seed(run.teach.seed)
    model = create_model(teacher.model, pool.heads, dropout=recipe.dropout).to(device)
    rule = ViewRule(run.teach.seed, run.teach.scale, model.clip.span_sec, flip=False)
    dataset = ClipDataset(Path(run.prepare.root) / "pool", pool, [model.clip])
    heads = {head: np.array(pool.table[f"label_{head}"]) for head in pool.heads}
    ids = pool.table["sample_id"].to_pylist()

    def batches(epoch: int) -> Iterator[Batch]:
        order = epoch_batches(
            rows=len(pool), batch_size=recipe.batch_size, seed=run.teach.seed, epoch=epoch
        )
        view = DrawnViews(rule, (epoch,))
        requests: list[list[Request]] = [[(int(row), view) for row in rows] for rows in order]
        for reads in iterate(dataset, requests, workers):
            good = [read for read in reads if read.clips is not None]
            for read in reads:
                if read.error is not None:
                    console.print(f"left out of epoch {epoch}: {read.error}")
            if not good:
                continue
            rows = np.array([read.row for read in good])
            clips = np.concatenate([read.clips.clips[0] for read in good if read.clips])
            yield Batch(
                names=[ids[row] for row in rows],
                clips=torch.from_numpy(clips).to(device),
                labels={
                    head: torch.from_numpy(labels[rows]).long().to(device)
                    for head, labels in heads.items()
                },
            )

    steps = steps_in_epoch(len(pool), recipe.batch_size)
    path = Path(teacher.weights)
    unfinished = path.with_name(f"{path.stem}.partial.safetensors")  # the old ones stand till then
    with meter(f"training {role}", total=recipe.epochs * steps, unit="steps") as counter:
        for log in train(
            model=model,
            branch=None,
            recipe=recipe,
            method=Method(LABELS_ONLY, label_smoothing=recipe.label_smoothing),
            batches=batches,
            steps_per_epoch=steps,
            on_step=counter.advance,
        ):
            console.print(f"{role} epoch {log.epoch}: {json.dumps(log.record)}")
            save_weights(model, unfinished, {"epoch": log.epoch + 1, "seed": run.teach.seed})
    unfinished.replace(path)
