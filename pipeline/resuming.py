"""Checkpoints of a training: written whole after an epoch, read to go on as if never interrupted.

`torch.save` writes them, `torch.load(weights_only=True)` reads them: tensors and plain values, no
objects. Views, the order of samples and mixing are drawn from (seed, epoch), so torch's is the only
random state that is kept; on the same machine and device what follows is the same to the last bit,
as far as the device's kernels are deterministic (a CPU's are).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.optimising import Training

_FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint cannot be gone on from; the message names the file and the way out."""


@dataclass
class Past:
    """What the epochs so far have left.

    Attributes:
        records: one per epoch, plain JSON.
        best_epoch: the epoch with the best score, from 0; None where none was scored.
        best_score: its score.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    best_score: float | None = None


def save_checkpoint(
    path: Path, training: Training, past: Past, belongs_to: Mapping[str, object]
) -> None:
    """Write a checkpoint; the file appears whole or not at all.

    Args:
        path: the file; its folder is made.
        training: between two epochs.
        past: what the epochs so far have left.
        belongs_to: what the training depends on, plain JSON; see `load_checkpoint`.
    """
    content = {
        "format": _FORMAT,
        "belongs_to": json.dumps(belongs_to),
        "past": json.dumps(vars(past)),
        "epochs_done": training.epochs_done,
        "random": _random_states(),
        **{name: part.state_dict() for name, part in _parts(training).items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        torch.save(content, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path, training: Training, belongs_to: Mapping[str, object]) -> Past:
    """Bring a training that has just been started to where a checkpoint left it.

    Args:
        path: the file.
        training: made alike; changed in place, as are torch's random states.
        belongs_to: what the training depends on; the checkpoint's must be the same.

    Returns:
        What the epochs so far have left.

    Raises:
        CheckpointError: the file is damaged, or belongs to another training: what differs is
            listed. Nothing is changed then.
    """
    way_out = f"move {path} away to begin anew"
    parts = _parts(training)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        theirs = {"format": content["format"], **json.loads(content["belongs_to"])}
        past = Past(**json.loads(content["past"]))
        epochs_done, random = content["epochs_done"], content["random"]
    except Exception as error:  # torch raises whatever its reader stumbles over
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} is no checkpoint of this training ({reason}); {way_out}"
        ) from error
    ours = {"format": _FORMAT, **json.loads(json.dumps(belongs_to))}
    if differences := _differences("", theirs, ours):
        lines = [f"{path} belongs to another training; {way_out}. What differs:", *differences]
        raise CheckpointError("\n  ".join(lines))
    for name, part in parts.items():
        part.load_state_dict(content[name])
    training.epochs_done = epochs_done
    torch.set_rng_state(random["cpu"])
    for device, state in enumerate(random["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)
    return past


def _parts(training: Training) -> dict[str, Any]:
    """What has a state of its own."""
    parts = {
        "model": training.model,
        "branch": training.branch,
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
