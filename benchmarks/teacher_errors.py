"""Where two teachers err: both right, only one, neither; on all videos and by what actions need.

python benchmarks/teacher_errors.py --dataset figures_hard    # about a minute
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from making import command, commit_of, print_table
from pipeline.config_file import load_config
from pipeline.datasets.figure_phrases import PHRASES
from pipeline.samples import read_samples
from pipeline.weights import weights_digest
from stages.files import write_csv
from stages.scoring import Scored, labelled, score
from stages.teachers import load_teachers

CELLS = ("both", "only_vit", "only_cnn", "neither")


def counted(
    split: str, what: str, vit: NDArray[np.bool_], cnn: NDArray[np.bool_], mean: NDArray[np.bool_]
) -> dict[str, Any]:
    """One row: shares of the videos.

    Args:
        split: of the videos.
        what: which of them.
        vit: (N,) where the ViT is right.
        cnn: (N,) where the CNN is.
        mean: (N,) where the mean of their probabilities is.
    """
    cells = (vit & cnn, vit & ~cnn, ~vit & cnn, ~vit & ~cnn)
    shares = {name: float(cell.mean()) for name, cell in zip(CELLS, cells, strict=True)}
    wrong = float((~vit).mean()) * float((~cnn).mean())
    return {
        "split": split,
        "actions": what,
        "videos": len(vit),
        "vit": float(vit.mean()),
        "cnn": float(cnn.mean()),
        "mean_of_both": float(mean.mean()),
        **shares,
        "neither_if_independent": wrong,
    }


def overlap(split: str, scored: Scored, classes: list[str]) -> list[dict[str, Any]]:
    """All videos, and those of each kind of action where the hard set is scored."""
    labels = scored.labels["action"]
    logits = {role: torch.from_numpy(scored.logits[role]["action"]) for role in ("vit", "cnn")}
    both = sum(of_role.softmax(dim=1) for of_role in logits.values())
    answers = {**logits, "mean": torch.as_tensor(both)}
    right = {name: of_name.argmax(dim=1).numpy() == labels for name, of_name in answers.items()}
    rows = [counted(split, "all", **right)]
    if set(classes) <= set(PHRASES):
        kinds = np.array([PHRASES[name].kind for name in classes])[labels]
        for kind in dict.fromkeys(action.kind for action in PHRASES.values()):
            chosen = kinds == kind
            rows.append(counted(split, kind, **{name: of[chosen] for name, of in right.items()}))
    return rows


def main() -> None:
    """Score both on each split that is not trained on, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="figures_hard")
    parser.add_argument("--splits", nargs="+", default=["val", "test"])
    parser.add_argument("--csv", type=Path, help="docs/results/<dataset>_teachers.csv")
    options = parser.parse_args()
    run = load_config(Path("configs") / f"{options.dataset}.yaml")
    table = read_samples(run.samples_path)
    models = load_teachers(run, table, torch.device("cpu")).by_role()
    digests = {f"{role}_sha256": weights_digest(of.net)[:16] for role, of in models.items()}
    rows: list[dict[str, Any]] = []
    for split in options.splits:
        samples = labelled(table.of_splits([split]))
        scored = score(models, Path(run.prepare.root), samples, 0, 32, what=f"scoring {split}")
        rows += overlap(split, scored, table.classes["action"])
    csv = options.csv or Path("docs/results") / f"{options.dataset}_teachers.csv"
    made_by = {"commit": commit_of(Path(__file__).parent), "command": command()}
    write_csv(csv, pa.Table.from_pylist([{**row, **digests, **made_by} for row in rows]))
    shown = [name for name in rows[0] if name not in ("split", "actions", "videos")]
    print_table(
        ["split", "actions", "videos", *(name.replace("_", " ") for name in shown)],
        [
            [row["split"], row["actions"], row["videos"], *(f"{row[name]:.1%}" for name in shown)]
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
