"""Several ranks train as one: the same batches, the same gradients, one set of files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cache import open_cache
from pipeline.config import Run
from pipeline.objective import Method, TrainingError
from pipeline.optimising import start_training
from pipeline.ranks import Ranks
from pipeline.resuming import CheckpointError, Past, load_checkpoint, save_checkpoint
from pipeline.training import train_step
from ranked import SIZE
from stages.feed import Feed, used_part
from training_making import WITHOUT_RKD, learner_of, make_batch, make_network, make_recipe

CPU = torch.device("cpu")


def gradients(pieces: int) -> dict[str, Any]:
    learner = learner_of(*make_network()).eval()
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.0)
    train_step(learner, make_batch(SIZE), Method(WITHOUT_RKD), optimiser, 1e9, accumulate=pieces)
    return {name: p.grad for name, p in learner.named_parameters()}


def assert_same_gradients(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * largest + 1e-9)


@pytest.mark.parametrize("pieces", [2, 4, 9])
def test_pieces_of_a_batch_give_its_gradient(pieces: int) -> None:
    """Four pieces of six clips are uneven; there are never more than clips."""
    assert_same_gradients(gradients(pieces), gradients(1))


@pytest.mark.slow
def test_two_ranks_are_one(mini: Run) -> None:
    tests = Path(__file__).parent
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--standalone", tests / "ranked.py"),
        ],
        env={"PYTHONPATH": f"{tests}:{tests.parent}", "OMP_NUM_THREADS": "1", "PATH": ""},
        check=True,
        capture_output=True,
        timeout=300,
    )
    first, second = (torch.load(f"rank-{rank}.pt") for rank in (0, 1))
    assert_same_gradients(first["gradients"], gradients(1))
    for name, gradient in first["gradients"].items():
        assert torch.equal(gradient, second["gradients"][name])
    # Side by side, the parts are the batches of one process.
    cache = open_cache(mini.cache_path)
    alone = Feed(mini, cache, used_part(mini, cache), CPU, 0)
    batches = [batch.names for epoch in (0, 1) for batch in alone(epoch)]
    both = [[*one, *other] for one, other in zip(first["batches"], second["batches"], strict=True)]
    assert both == batches
    # One set of files, of both students.
    out = mini.outputs / "distill"
    final = json.loads((out / "distill.json").read_text())["final"]
    assert final["student"]["kd"] > 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert not list(out.rglob("checkpoint.pt"))


def test_a_batch_that_is_too_small_to_be_shared_is_refused(mini: Run) -> None:
    cache = open_cache(mini.cache_path)
    with pytest.raises(TrainingError, match="batches of 7 clips cannot be shared by 8 processes"):
        Feed(mini, cache, used_part(mini, cache), CPU, 0, Ranks(0, 8))


def test_a_checkpoint_of_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    training = start_training(learner_of(make_network()[0]), make_recipe(), 2)
    save_checkpoint(tmp_path / "checkpoint.pt", training, Past(), {})
    with pytest.raises(CheckpointError, match="ranks: the checkpoint has 1, the run 2"):
        load_checkpoint(tmp_path / "checkpoint.pt", training, {}, Ranks(0, 2))
