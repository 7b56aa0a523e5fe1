"""Checkpoints: what was interrupted ends as what was not; what does not belong is refused."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.branch import StructureDiscrepancyBranch
from pipeline.models import create_model
from pipeline.objective import Batch, Method
from pipeline.optimising import Training, start_training
from pipeline.resuming import CheckpointError, Past, load_checkpoint, save_checkpoint
from pipeline.training import train
from training_making import ALL, HEADS, NANO, RESIDUAL, learner_of, make_batch, make_recipe

BELONGS_TO = {"model": NANO, "train": {"epochs": 4, "learning_rate": 0.01}, "heads": HEADS}


def fresh(seed: int = 0, ema_decay: float | None = 0.7) -> Training:
    """A training with everything that has a state; dropout draws random numbers."""
    torch.manual_seed(seed)
    model = create_model(NANO, HEADS, dropout=0.4)
    branch = StructureDiscrepancyBranch(model.map_channels, RESIDUAL[0], RESIDUAL[1:], 8)
    recipe = make_recipe(epochs=4, learning_rate=0.01, ema_decay=ema_decay)
    return start_training(learner_of(model, branch), recipe, 2, layer_decay=0.8)


def go_on(training: Training, path: Path, *, past: Past, until: int = 4) -> Past:
    """Train on, with a checkpoint after each epoch, and stop after so many."""

    def batches(epoch: int, first: int) -> list[Batch]:
        made = [make_batch(4, 10 + epoch), make_batch(3, 20 + epoch)]
        return [replace(batch, number=number) for number, batch in enumerate(made)][first:]

    recipe = make_recipe(epochs=4, learning_rate=0.01)
    for log in train(training, recipe=recipe, method=Method(ALL), batches=batches):
        del log.record["clips_per_sec"], log.record["waited"]
        past.records.append({"epoch": log.epoch, **log.record})
        past.best_epoch, past.best_score = log.epoch, 0.25
        save_checkpoint(path, training, past, BELONGS_TO)
        if log.epoch + 1 == until:
            break
    return past


def tensors(value: Any) -> list[Tensor]:
    """All tensors of nested states, in order."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [t for part in parts if isinstance(part, dict | list | Tensor) for t in tensors(part)]


def state(training: Training) -> list[Tensor]:
    assert training.average is not None
    parts = (training.learner, training.optimiser, training.average.module)
    return tensors([part.state_dict() for part in parts])


@pytest.mark.parametrize("done", [1, 3, 4])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(done: int, tmp_path: Path) -> None:
    whole = fresh()
    logs = go_on(whole, tmp_path / "whole.pt", past=Past())
    path = tmp_path / "role" / "checkpoint.pt"
    go_on(fresh(), path, past=Past(), until=done)
    torch.manual_seed(99)
    torch.rand(7)  # another process stands elsewhere in its random numbers, and
    resumed = fresh(seed=5)  # whatever the network begins with is replaced
    past = load_checkpoint(path, resumed, BELONGS_TO)
    assert resumed.epochs_done == done
    assert past == Past(logs.records[:done], done - 1, 0.25)
    past = go_on(resumed, path, past=past)
    assert past.records == logs.records
    assert len(state(whole)) == len(state(resumed)) > 100
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(resumed), strict=True))
    assert resumed.schedule.get_last_lr() == whole.schedule.get_last_lr()


def test_a_checkpoint_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, training = tmp_path / "checkpoint.pt", fresh()
    save_checkpoint(path, training, Past(), BELONGS_TO)
    before = path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left on device; the one of before stands"):
        save_checkpoint(path, training, Past(), BELONGS_TO)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_of_another_training_is_refused_with_what_differs(tmp_path: Path) -> None:
    path, training = tmp_path / "checkpoint.pt", fresh()
    save_checkpoint(path, training, Past(), BELONGS_TO)
    before = [tensor.clone() for tensor in state(training)]
    random = torch.get_rng_state()
    other = BELONGS_TO | {"train": {"epochs": 5, "learning_rate": 0.01}, "seed": 3}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path, training, other)
    assert str(caught.value).splitlines() == [
        f"{path} belongs to another training; move {path} away to begin anew "
        "(distill and ablate: --anew). What differs:",
        "  train.epochs: the checkpoint has 4, the run 5",
        "  seed: the checkpoint has None, the run 3",
    ]
    assert all(torch.equal(a, b) for a, b in zip(before, state(training), strict=True))
    assert torch.equal(random, torch.get_rng_state())


class Code:
    """What a checkpoint must not hold: unpickling it would run whatever it says."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize("what", ["cut", "text", "code", "state dict", "list"])
def test_what_is_no_checkpoint_is_refused_and_nothing_in_it_runs(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, training = tmp_path / "checkpoint.pt", fresh()
    save_checkpoint(path, training, Past(), BELONGS_TO)
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-2000])
    elif what == "text":
        path.write_text("no checkpoint")
    else:
        head = {"format": 3, "belongs_to": json.dumps(BELONGS_TO), "past": Code()}
        content = {"code": head, "state dict": training.learner.model.state_dict(), "list": [1, 2]}[
            what
        ]
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"is no checkpoint .*; move .* away to begin anew"):
        load_checkpoint(path, training, BELONGS_TO)
    assert not Path("ran").exists()
