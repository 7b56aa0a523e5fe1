"""Stage `evaluate`: both teachers, the baseline and the student on the same test clips."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from pipeline.clips import ClipDataset, Request, central_view, in_batches, iterate
from pipeline.config import Run
from pipeline.metrics import top_k
from pipeline.models import VideoModel, count_flops, count_parameters
from pipeline.samples import Samples, read_samples
from pipeline.training import predict
from pipeline.views import ClipSpec
from pipeline.weights import weights_digest
from stages.distill import load_students
from stages.files import write_csv, write_json
from stages.progress import console, track
from stages.teachers import load_teachers


class EvaluateError(ValueError):
    """Evaluation cannot be done; the message says why."""


def evaluate(run: Run, *, device: torch.device, workers: int, batch_size: int) -> None:
    """Score all four on the single centre view and write metrics, answers and tables."""
    samples = read_samples(run.samples_path).of_splits([run.evaluate.split])
    out = run.outputs / "evaluate"
    models = load_teachers(run, samples, device).by_role() | load_students(run, samples)
    models = {role: model.to(device) for role, model in models.items()}
    scored = score(models, Path(run.prepare.root), samples, workers, batch_size)
    head = next(iter(samples.heads))
    labels = samples.table[f"label_{head}"].to_numpy()[scored.rows]
    metrics: dict[str, Any] = {"split": run.evaluate.split, "videos": len(labels)}
    metrics["unreadable"] = len(samples) - len(labels)
    for role, model in models.items():
        metrics[role] = {
            "model": model.name,
            "top1": top_k(scored.logits[role], labels, 1),
            "top5": top_k(scored.logits[role], labels, 5),
            "weights_sha256": weights_digest(model.net),
            "parameters": count_parameters(model),
            "flops": count_flops(model),
            "ms_per_clip": 1000 * scored.seconds[role] / len(labels),
        }
        console.print(
            f"{role:9} top-1 {metrics[role]['top1']:.1%}  top-5 {metrics[role]['top5']:.1%}"
        )
    metrics["gain_top1"] = metrics["student"]["top1"] - metrics["baseline"]["top1"]
    write_json(out / "metrics.json", metrics)
    _write_answers(out, samples, scored, labels)
    _write_tables(out, samples.classes[head], scored, labels)


class Scored:
    """Logits of every model for every readable sample.

    Attributes:
        rows: (N,) which samples could be read.
        logits: by role (N, K), first head.
        seconds: by role, time in the forward passes.
        errors: row → why its video could not be read.
    """

    def __init__(self, roles: list[str]) -> None:
        self.rows: NDArray[np.int64] = np.zeros(0, np.int64)
        self.logits: dict[str, NDArray[np.float32]] = {}
        self.seconds = dict.fromkeys(roles, 0.0)
        self.errors: dict[int, str] = {}


def score(
    models: dict[str, VideoModel], root: Path, samples: Samples, workers: int, batch_size: int
) -> Scored:
    """Run models over the centre views of a split: one decode serves them all.

    Raises:
        EvaluateError: not one video can be read.
    """
    scored = Scored(list(models))
    specs = list(dict.fromkeys(model.clip for model in models.values()))
    for model in models.values():  # the first pass of a process sets things up: not timed
        predict(model, _blank(model.clip).to(_device(model)))
    requests: list[Request] = [(row, central_view) for row in range(len(samples))]
    batches = in_batches(requests, batch_size)
    head = next(iter(samples.heads))
    rows: list[int] = []
    logits: dict[str, list[NDArray[np.float32]]] = {role: [] for role in models}
    dataset = ClipDataset(root, samples, specs, test_crop=True)
    reads = iterate(dataset, batches, workers)
    for batch in track(reads, total=len(batches), what="evaluating", unit="batches"):
        scored.errors |= {read.row: read.error for read in batch if read.error is not None}
        good = [read for read in batch if read.clips is not None]
        if not good:
            continue
        rows += [read.row for read in good]
        for role, model in models.items():
            which = specs.index(model.clip)
            clips = np.concatenate([read.clips.clips[which] for read in good if read.clips])
            started = time.perf_counter()
            answer = predict(model, torch.from_numpy(clips).to(_device(model)))
            logits[role].append(answer[head].float().cpu().numpy())
            scored.seconds[role] += time.perf_counter() - started
    for row, error in scored.errors.items():
        console.print(f"left out: {samples.row(row).sample_id}: {error}")
    if not rows:
        first = next(iter(scored.errors.values()), "the split is empty")
        raise EvaluateError(f"not one of {len(samples)} videos can be read; the first: {first}")
    scored.rows = np.array(rows)
    scored.logits = {role: np.concatenate(parts) for role, parts in logits.items()}
    return scored


def _blank(clip: ClipSpec) -> torch.Tensor:
    return torch.zeros(1, clip.frames, clip.size, clip.size, 3, dtype=torch.uint8)


def _device(model: VideoModel) -> torch.device:
    return next(model.parameters()).device


def _write_answers(out: Path, samples: Samples, scored: Scored, labels: NDArray[np.int64]) -> None:
    """One row per sample: its label, and each model's answer with its probability."""
    names = samples.table["sample_id"].to_pylist()
    columns: dict[str, Any] = {
        "sample_id": [names[row] for row in scored.rows],
        "label": labels,
    }
    for role, logits in scored.logits.items():
        probabilities = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
        columns[f"{role}_answer"] = logits.argmax(axis=1)
        columns[f"{role}_probability"] = probabilities.max(axis=1)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), out / "answers.parquet")


def _write_tables(out: Path, classes: list[str], scored: Scored, labels: NDArray[np.int64]) -> None:
    """Accuracy by class, and label against answer of the student, for `dvc plots`."""
    rows = []
    for index, name in enumerate(classes):
        of_class = labels == index
        row: dict[str, Any] = {"class": name, "videos": int(of_class.sum())}
        for role, logits in scored.logits.items():
            hits = logits[of_class].argmax(axis=1) == index
            row[role] = float(hits.mean()) if of_class.any() else None
        rows.append(row)
    write_csv(out / "by_class.csv", pa.Table.from_pylist(rows))
    answers = scored.logits["student"].argmax(axis=1)
    pairs = {
        "actual": [classes[label] for label in labels],
        "predicted": [classes[answer] for answer in answers],
    }
    write_csv(out / "confusion.csv", pa.table(pairs))
