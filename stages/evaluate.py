"""Stage `evaluate`: both teachers, the baseline and the student on the same test clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.config import Run
from pipeline.config_prepare import PrepareEpic100
from pipeline.models import count_flops, count_parameters
from pipeline.protocols import PROTOCOLS
from pipeline.samples import Samples, read_samples, write_parquet
from pipeline.subsets import read_subsets
from pipeline.weights import weights_digest
from stages.distill import load_students
from stages.files import write_csv, write_json
from stages.progress import console
from stages.scoring import Scored, labelled, score
from stages.teachers import load_teachers


def evaluate(run: Run, *, device: torch.device, decoders: int, batch_size: int) -> None:
    """Score all four on the views of the config's protocol; write metrics, answers and tables."""
    samples = labelled(read_samples(run.samples_path).of_splits([run.evaluate.split]))
    subsets = _subsets(run, samples)
    protocol = PROTOCOLS[run.evaluate.protocol]
    out = run.outputs / "evaluate"
    models = load_teachers(run, samples, device).by_role() | load_students(run, samples)
    models = {role: model.to(device) for role, model in models.items()}
    root = Path(run.prepare.root)
    scored = score(
        models,
        root,
        samples,
        decoders,
        batch_size,
        protocol=protocol,
        max_failed_share=run.extract.max_failed_share,
    )
    videos = len(scored.rows)
    metrics: dict[str, Any] = {
        "split": run.evaluate.split,
        "protocol": run.evaluate.protocol,
        "views": protocol.views,
        "videos": videos,
        "unreadable": len(samples) - videos,
    }
    by_name = {model.name: model for model in models.values()}  # the students share one
    flops = {name: count_flops(model) for name, model in by_name.items()}
    for role, model in models.items():
        metrics[role] = {
            "model": model.name,
            **scored.accuracies(role),
            "weights_sha256": weights_digest(model.net),
            "parameters": count_parameters(model),
            "flops": flops[model.name],
            "ms_per_clip": 1000 * scored.seconds[role] / scored.clips,
        }
        if subsets:
            metrics[role]["subsets"] = {
                name: _of_subset(scored, role, members[scored.rows])
                for name, members in subsets.items()
            }
        console.print(f"{role:9} {_top(metrics[role])}")
        parts = metrics[role].get("heads", {}) | metrics[role].get("subsets", {})
        for name, figures in parts.items():
            if "top1" in figures:
                console.print(f"  {name:11} {_top(figures)}")
    metrics["gain_top1"] = metrics["student"]["top1"] - metrics["baseline"]["top1"]
    write_json(out / "metrics.json", metrics)
    _write_answers(out, samples, scored)
    _write_tables(out, samples, scored)


def _top(figures: dict[str, Any]) -> str:
    return f"top-1 {figures['top1']:.1%}  top-5 {figures['top5']:.1%}"


def _subsets(run: Run, samples: Samples) -> dict[str, NDArray[np.bool_]]:
    """Which samples are scored on their own too; only EPIC-KITCHENS-100 has any.

    Raises:
        pipeline.samples.SamplesError: `prepare` wrote none, or of other samples.
    """
    if not isinstance(run.prepare, PrepareEpic100) and not run.subsets_path.is_file():
        return {}  # samples tables that were written before there were subsets
    return read_subsets(run.subsets_path, samples)


def _of_subset(scored: Scored, role: str, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Accuracies of a part of the videos; only their number where there are none."""
    videos = int(chosen.sum())
    return {"videos": videos, **(scored.accuracies(role, chosen) if videos else {})}


def _write_answers(out: Path, samples: Samples, scored: Scored) -> None:
    """One row per sample: its label, and each model's answer with its probability.

    With several heads these columns are there for each, as `verb/label`, `verb/student_answer`.
    """
    names = samples.table["sample_id"].to_pylist()
    columns: dict[str, Any] = {"sample_id": [names[row] for row in scored.rows]}
    for head, labels in scored.labels.items():
        prefix = f"{head}/" if len(scored.labels) > 1 else ""
        columns[f"{prefix}label"] = labels
        for role, logits in scored.logits.items():
            probabilities = torch.softmax(torch.from_numpy(logits[head]), dim=1).numpy()
            columns[f"{prefix}{role}_answer"] = logits[head].argmax(axis=1)
            columns[f"{prefix}{role}_probability"] = probabilities.max(axis=1)
    write_parquet(pa.table(columns), out / "answers.parquet")


def _write_tables(out: Path, samples: Samples, scored: Scored) -> None:
    """Accuracy by class, and label against answer of the student, for `dvc plots`.

    With several heads the first has a column `head`, and the classes of the second are named as
    `verb: take`: all of them stand on the plot's one axis.
    """
    rows = []
    pairs: dict[str, list[str]] = {"actual": [], "predicted": []}
    several = len(samples.classes) > 1
    for head, classes in samples.classes.items():
        labels = scored.labels[head]
        answers = {role: logits[head].argmax(axis=1) for role, logits in scored.logits.items()}
        for index, name in enumerate(classes):
            of_class = labels == index
            row: dict[str, Any] = {"head": head} if several else {}
            row |= {"class": name, "videos": int(of_class.sum())}
            for role, of_role in answers.items():
                hits = of_role[of_class] == index
                row[role] = float(hits.mean()) if of_class.any() else None
            rows.append(row)
        shown = [f"{head}: {name}" if several else name for name in classes]
        pairs["actual"] += [shown[label] for label in labels]
        pairs["predicted"] += [shown[answer] for answer in answers["student"]]
    write_csv(out / "by_class.csv", pa.Table.from_pylist(rows))
    write_csv(out / "confusion.csv", pa.table(pairs))
