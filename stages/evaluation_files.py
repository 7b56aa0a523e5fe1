"""The tables that `evaluate` leaves: answers, accuracy by class, confusions, reliability."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline.calibration import Reliability
from pipeline.metrics import NO_ANSWER, confusion_counts
from pipeline.samples import Samples, write_parquet
from stages.evaluation_figures import Calibrations
from stages.files import write_csv
from stages.scoring import Scored

ALL_HEADS = "action"  # what training logs call several heads together
Row = dict[str, Any]


def write_answers(out: Path, samples: Samples, scored: Scored) -> None:
    """One row per sample: its label, and each model's answer with its probability.

    With several heads these columns are there for each, as `verb/label`, `verb/student_answer`. An
    output that is not finite has the answer −1 and the probability NaN.
    """
    names = samples.table["sample_id"].to_pylist()
    columns: dict[str, Any] = {"sample_id": [names[row] for row in scored.rows]}
    for head, labels in scored.labels.items():
        prefix = f"{head}/" if len(scored.labels) > 1 else ""
        columns[f"{prefix}label"] = labels
        for role, logits in scored.logits.items():
            probabilities = torch.softmax(torch.from_numpy(logits[head]), dim=1).numpy()
            columns[f"{prefix}{role}_answer"] = scored.answers(role)[head]
            columns[f"{prefix}{role}_probability"] = probabilities.max(axis=1)
    write_parquet(pa.table(columns), out / "answers.parquet")


def class_rows(samples: Samples, scored: Scored) -> list[Row]:
    """Accuracy by class and network, and what the student gained over the baseline."""
    rows = []
    for head, classes in samples.classes.items():
        right = {role: scored.label_ranks(role)[head,] == 0 for role in scored.logits}
        for index, name in enumerate(classes):
            of_class = scored.labels[head] == index
            there = bool(of_class.any())
            row: Row = {"head": head} if len(samples.classes) > 1 else {}
            row |= {"class": name, "videos": int(of_class.sum())}
            row |= {
                role: float(hits[of_class].mean()) if there else None
                for role, hits in right.items()
            }
            row["gain"] = row["student"] - row["baseline"] if there else None
            rows.append(row)
    return rows


def confusion_rows(samples: Samples, scored: Scored) -> list[Row]:
    """Every pair of classes that baseline or student mistakes, what distillation removed first."""
    rows = []
    for head, classes in samples.classes.items():
        counts = {
            role: confusion_counts(scored.labels[head], scored.answers(role)[head], len(classes))
            for role in ("baseline", "student")
        }
        made = counts["baseline"] + counts["student"]
        np.fill_diagonal(made, 0)
        for actual, predicted in np.argwhere(made).tolist():
            row: Row = {"head": head} if len(samples.classes) > 1 else {}
            row |= {"actual": classes[actual], "predicted": classes[predicted]}
            row |= {role: int(of_role[actual, predicted]) for role, of_role in counts.items()}
            row["removed"] = row["baseline"] - row["student"]
            rows.append(row)
    names = ("head", "actual", "predicted")
    return sorted(rows, key=lambda row: (-row["removed"], *(row.get(name, "") for name in names)))


def write_tables(
    out: Path,
    samples: Samples,
    scored: Scored,
    calibrated: Calibrations,
    by_class: list[Row],
    confusions: list[Row],
) -> None:
    """Write the CSV files, for people and for `dvc plots`."""
    write_csv(out / "by_class.csv", pa.Table.from_pylist(by_class))
    write_csv(out / "confusion.csv", _label_against_answer(samples, scored))
    several = len(samples.classes) > 1
    schema = pa.schema(
        [
            *([("head", pa.string())] if several else []),
            *((name, pa.string()) for name in ("actual", "predicted")),
            *((name, pa.int64()) for name in ("baseline", "student", "removed")),
        ]
    )
    write_csv(out / "confusions.csv", pa.Table.from_pylist(confusions, schema=schema))
    rows = list(_reliability_rows(calibrated, several=several))
    write_csv(out / "reliability.csv", pa.Table.from_pylist(rows))


def _label_against_answer(samples: Samples, scored: Scored) -> pa.Table:
    """A row per video that the student answers.

    With several heads the classes are named as `verb: take`: all of them stand on the plot's one
    axis.
    """
    pairs: dict[str, list[str]] = {"actual": [], "predicted": []}
    for head, classes in samples.classes.items():
        several = len(samples.classes) > 1
        shown = [f"{head}: {name}" if several else name for name in classes]
        answers = scored.answers("student")[head]
        given = answers != NO_ANSWER
        pairs["actual"] += [shown[label] for label in scored.labels[head][given]]
        pairs["predicted"] += [shown[answer] for answer in answers[given]]
    return pa.table(pairs, schema=pa.schema([(name, pa.string()) for name in pairs]))


def _reliability_rows(calibrated: Calibrations, *, several: bool) -> Iterator[Row]:
    """Of each network, before and after its temperature, the bins of confidence."""
    for role, by_heads in calibrated.items():
        for heads, one in by_heads.items():
            about: Row = {"role": role}
            if several:
                about["head"] = ALL_HEADS if len(heads) > 1 else heads[0]
            for scaled, bins in ((False, one.before), (True, one.after)):
                if bins is not None:
                    yield from (about | row for row in _bin_rows(bins, scaled=scaled))


def _bin_rows(bins: Reliability, *, scaled: bool) -> Iterator[Row]:
    for place, videos in enumerate(bins.videos.tolist()):
        yield {
            "calibrated": scaled,
            "bin_low": float(bins.edges[place]),
            "bin_high": float(bins.edges[place + 1]),
            "videos": videos,
            "confidence": float(bins.confidence[place]) if videos else None,
            "accuracy": float(bins.accuracy[place]) if videos else None,
        }
