"""Stage `evaluate`: both teachers, the baseline and the student on the same test clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from pipeline.config import Run
from pipeline.models import count_flops, count_parameters
from pipeline.samples import Samples, read_samples
from pipeline.weights import weights_digest
from stages.distill import load_students
from stages.files import write_csv, write_json
from stages.progress import console
from stages.scoring import Scored, labelled, score
from stages.teachers import load_teachers


def evaluate(run: Run, *, device: torch.device, workers: int, batch_size: int) -> None:
    """Score all four on the single centre view and write metrics, answers and tables."""
    samples = labelled(read_samples(run.samples_path).of_splits([run.evaluate.split]))
    out = run.outputs / "evaluate"
    models = load_teachers(run, samples, device).by_role() | load_students(run, samples)
    models = {role: model.to(device) for role, model in models.items()}
    scored = score(models, Path(run.prepare.root), samples, workers, batch_size)
    videos = len(scored.rows)
    metrics: dict[str, Any] = {"split": run.evaluate.split, "videos": videos}
    metrics["unreadable"] = len(samples) - videos
    by_name = {model.name: model for model in models.values()}  # the students share one
    flops = {name: count_flops(model) for name, model in by_name.items()}
    for role, model in models.items():
        metrics[role] = {
            "model": model.name,
            **scored.accuracies(role),
            "weights_sha256": weights_digest(model.net),
            "parameters": count_parameters(model),
            "flops": flops[model.name],
            "ms_per_clip": 1000 * scored.seconds[role] / videos,
        }
        console.print(
            f"{role:9} top-1 {metrics[role]['top1']:.1%}  top-5 {metrics[role]['top5']:.1%}"
        )
    metrics["gain_top1"] = metrics["student"]["top1"] - metrics["baseline"]["top1"]
    write_json(out / "metrics.json", metrics)
    head = next(iter(samples.heads))
    logits = {role: of_role[head] for role, of_role in scored.logits.items()}
    _write_answers(out, samples, scored, logits, scored.labels[head])
    _write_tables(out, samples.classes[head], logits, scored.labels[head])


Logits = dict[str, NDArray[np.float32]]  # of the first head, by role (N, K)


def _write_answers(
    out: Path, samples: Samples, scored: Scored, logits: Logits, labels: NDArray[np.int64]
) -> None:
    """One row per sample: its label, and each model's answer with its probability."""
    names = samples.table["sample_id"].to_pylist()
    columns: dict[str, Any] = {
        "sample_id": [names[row] for row in scored.rows],
        "label": labels,
    }
    for role, of_role in logits.items():
        probabilities = torch.softmax(torch.from_numpy(of_role), dim=1).numpy()
        columns[f"{role}_answer"] = of_role.argmax(axis=1)
        columns[f"{role}_probability"] = probabilities.max(axis=1)
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), out / "answers.parquet")


def _write_tables(out: Path, classes: list[str], logits: Logits, labels: NDArray[np.int64]) -> None:
    """Accuracy by class, and label against answer of the student, for `dvc plots`."""
    rows = []
    for index, name in enumerate(classes):
        of_class = labels == index
        row: dict[str, Any] = {"class": name, "videos": int(of_class.sum())}
        for role, of_role in logits.items():
            hits = of_role[of_class].argmax(axis=1) == index
            row[role] = float(hits.mean()) if of_class.any() else None
        rows.append(row)
    write_csv(out / "by_class.csv", pa.Table.from_pylist(rows))
    answers = logits["student"].argmax(axis=1)
    pairs = {
        "actual": [classes[label] for label in labels],
        "predicted": [classes[answer] for answer in answers],
    }
    write_csv(out / "confusion.csv", pa.table(pairs))
