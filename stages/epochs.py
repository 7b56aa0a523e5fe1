"""Around the epochs of a training: where it goes on, what each leaves, its validation score."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Run
from pipeline.models import VideoModel
from pipeline.optimising import Training
from pipeline.ranks import ALONE, Ranks
from pipeline.resuming import Past, load_checkpoint
from pipeline.samples import Samples
from pipeline.weights import save_weights
from stages.progress import console
from stages.scoring import labelled, score

_BATCH = 32  # clips in one forward pass


def go_on(
    name: str,
    checkpoint: Path,
    training: Training,
    belongs_to: Mapping[str, Any],
    steps: int,
    ranks: Ranks = ALONE,
) -> tuple[Past, int]:
    """Bring a training to where its checkpoint is, if there is one.

    Args:
        name: for people.
        checkpoint: the file.
        training: as it starts; changed in place.
        belongs_to: what it depends on.
        steps: of an epoch.
        ranks: those that train together; all must call it.

    Returns:
        What its epochs have left, and how many steps were done.

    Raises:
        pipeline.resuming.CheckpointError: the checkpoint belongs to another training.
    """
    if not checkpoint.exists():
        return Past(), 0
    past = load_checkpoint(checkpoint, training, belongs_to, ranks)
    done = training.epochs_done * steps + training.steps_done
    if ranks.first:
        console.print(f"{name}: {checkpoint} goes on after {done} steps")
    return past, done


def validation_top1(
    run: Run, model: VideoModel, samples: Samples, decoders: int, ranks: Ranks = ALONE
) -> float:
    """On the single centre view, as `evaluate` and the gate count it: of all heads together.

    Args:
        run: the config.
        model: on its device.
        samples: those that are scored; samples without labels are left out.
        decoders: processes that decode.
        ranks: each scores a part; all must call it.

    Raises:
        stages.scoring.ScoringError: not one video has all labels, or can be read.
    """
    chosen = labelled(samples)
    own = chosen.take(range(ranks.rank, len(chosen), ranks.world))
    right = scored_rows = 0.0
    if len(own):
        scored = score(
            {"it": model}, Path(run.prepare.root), own, decoders, _BATCH, what="validating"
        )
        scored_rows = float(len(scored.rows))
        right = float(scored.accuracies("it")["top1"]) * scored_rows
    device = next(model.parameters()).device
    both = ranks.total(torch.tensor([right, scored_rows], dtype=torch.float64, device=device))
    return float(both[0] / both[1])


def keep_epoch(
    folder: Path,
    training: Training,
    past: Past,
    record: dict[str, Any],
    facts: Mapping[str, Any],
    validation: str | None,
) -> None:
    """Note an epoch, and write its weights as the last, and as the best if none was better before.

    Args:
        folder: gets `last.safetensors` and, with a validation split, `best.safetensors`.
        training: after the epoch.
        past: gets the record.
        record: with `top1` where there is a validation split.
        facts: for the files of weights.
        validation: the split's name.
    """
    past.records.append(record)
    facts = {"epoch": record["epoch"] + 1, **facts}
    save_weights(training.result, folder / "last.safetensors", facts)
    top1 = record.get("top1")
    if top1 is not None and (past.best_score is None or top1 > past.best_score):
        past.best_epoch, past.best_score = record["epoch"], top1
        facts |= {"validation": validation, "top1": top1}
        save_weights(training.result, folder / "best.safetensors", facts)
