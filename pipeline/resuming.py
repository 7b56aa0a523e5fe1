"""Checkpoints of a training: written whole between two steps, read to go on as if undisturbed.

`torch.save` writes them, `torch.load(weights_only=True)` reads them: tensors and plain values, no
objects. Views, the order of samples and mixing are drawn from (seed, epoch), so torch's, of every
rank, is the only random state that is kept; on the same machine and device what follows is the
same to the last bit, as far as the device's kernels are deterministic (a CPU's are).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.files import write_whole
from pipeline.optimising import Training
from pipeline.ranks import ALONE, Ranks
from pipeline.totals import Totals

_FORMAT = 3


class CheckpointError(ValueError):
    """A checkpoint cannot be gone on from; the message names the file and the way out."""


@dataclass
class Past:
    """What the epochs so far have left.

    Attributes:
        records: one per epoch, plain JSON.
        best_epoch: the epoch with the best score, from 0; None where none was scored.
        best_score: its score.
        by_class: one list per epoch, of the ViT's weight by class.
        by_confidence: one list per epoch, of that weight and its clips by the teachers' confidence.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    best_score: float | None = None
    by_class: list[list[float]] = field(default_factory=list)
    by_confidence: list[list[list[float]]] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    training: Training,
    past: Past,
    belongs_to: Mapping[str, object],
    ranks: Ranks = ALONE,
) -> None:
    """Write a checkpoint; the file appears whole, and on the disk, or not at all.

    Args:
        path: the file; its folder is made. The one that stands is replaced at the very end.
        training: between two steps.
        past: what the epochs so far have left.
        belongs_to: what the training depends on, plain JSON; see `load_checkpoint`.
        ranks: those that train together; all must call it, the first one writes.

    Raises:
        CheckpointError: it cannot be written, as on a full disk; the last one stands.
    """
    own = {"random": _random_states(), "totals": json.dumps(training.totals.state())}
    of_ranks = ranks.gathered(own)
    if not ranks.first:
        return
    content = {
        "format": _FORMAT,
        "belongs_to": json.dumps(belongs_to),
        "past": json.dumps(vars(past)),
        "epochs_done": training.epochs_done,
        "steps_done": training.steps_done,
        "ranks": of_ranks,
        **{name: part.state_dict() for name, part in _parts(training).items()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        write_whole(path, buffer.getbuffer())
    except OSError as error:
        stands = "the one of before stands" if path.exists() else "there is none"
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {error.strerror or error}; {stands}. Once that "
            "is mended, the same command goes on from there"
        ) from error


def load_checkpoint(
    path: Path, training: Training, belongs_to: Mapping[str, object], ranks: Ranks = ALONE
) -> Past:
    """Bring a training that has just been started to where a checkpoint left it.

    Args:
        path: the file.
        training: made alike; changed in place, as are torch's random states.
        belongs_to: what the training depends on; the checkpoint's must be the same.
        ranks: those that train together; as many as wrote it.

    Returns:
        What the epochs so far have left.

    Raises:
        CheckpointError: the file is damaged, or belongs to another training: what differs is
            listed. Nothing is changed then.
    """
    way_out = f"move {path} away to begin anew (distill and ablate: --anew)"
    parts = _parts(training)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        theirs = {"format": content["format"], **json.loads(content["belongs_to"])}
        past = Past(**json.loads(content["past"]))
        epochs_done, steps_done = content["epochs_done"], content["steps_done"]
        of_ranks = content["ranks"]
    except Exception as error:  # torch raises whatever its reader stumbles over
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} is no checkpoint of this training ({reason}); {way_out}"
        ) from error
    theirs["ranks"] = len(of_ranks)
    ours = {"format": _FORMAT, "ranks": ranks.world, **json.loads(json.dumps(belongs_to))}
    if differences := _differences("", theirs, ours):
        lines = [f"{path} belongs to another training; {way_out}. What differs:", *differences]
        raise CheckpointError("\n  ".join(lines))
    for name, part in parts.items():
        part.load_state_dict(content[name])
    own = of_ranks[ranks.rank]
    random, device = own["random"], next(training.learner.parameters()).device
    training.begin_epoch(epochs_done)
    training.steps_done = steps_done
    classes = training.totals.classes
    training.totals = Totals.from_state(classes, json.loads(own["totals"]), device)
    torch.set_rng_state(random["cpu"])
    for number, state in enumerate(random["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, number)
    return past


def _parts(training: Training) -> dict[str, Any]:
    """What has a state of its own."""
    parts = {
        "learner": training.learner,
        "optimiser": training.optimiser,
        "schedule": training.schedule,
        "average": None if training.average is None else training.average.module,
    }
    return {name: part for name, part in parts.items() if part is not None}


def _random_states() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _differences(name: str, theirs: Any, ours: Any) -> list[str]:
    """One line for each value that differs, by its dotted name."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [
            line
            for key in {**theirs, **ours}
            for line in _differences(f"{name}.{key}".lstrip("."), theirs.get(key), ours.get(key))
        ]
    return [] if theirs == ours else [f"{name}: the checkpoint has {theirs!r}, the run {ours!r}"]
