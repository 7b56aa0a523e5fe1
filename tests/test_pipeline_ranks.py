"""Several ranks train as one: the same batches, the same gradients, one set of files."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pyarrow import csv

from cache import open_cache
from chain_making import write_config
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


@contextmanager
def two_ranks(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Two processes of `ranked.py`, which are killed at the end of the block."""
    tests = Path(__file__).parent
    with Path("ranks.log").open("wb") as log:
        started = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
                *("--standalone", str(tests / "ranked.py"), *arguments),
            ],
            env={"PYTHONPATH": f"{tests}:{tests.parent}", "OMP_NUM_THREADS": "1", "PATH": ""},
            stdout=log,
            stderr=log,
        )
        try:
            yield started
        finally:
            if started.poll() is None:
                for process in psutil.Process(started.pid).children(recursive=True):
                    process.kill()
                started.kill()
                started.wait()


@pytest.mark.slow
def test_killed_ranks_go_on_to_the_same_end(mini: Run) -> None:
    out = write_config(Path.cwd(), ("epochs: 1", "epochs: 2")).outputs / "distill"
    with two_ranks("distill") as undisturbed:
        assert undisturbed.wait(300) == 0, Path("ranks.log").read_text()
    weights = [(out / f"{name}.safetensors").read_bytes() for name in ("baseline", "student")]
    shutil.rmtree(out)
    checkpoint, deadline = out / "student" / "checkpoint.pt", time.monotonic() + 300
    with two_ranks("distill") as killed:
        while not checkpoint.exists():
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "student.safetensors").exists()
    with two_ranks("distill") as again:
        assert again.wait(300) == 0, Path("ranks.log").read_text()
    assert "goes on after" in Path("ranks.log").read_text()
    assert [
        (out / f"{name}.safetensors").read_bytes() for name in ("baseline", "student")
    ] == weights


@pytest.mark.slow
def test_two_ranks_are_one(mini: Run) -> None:
    with two_ranks() as started:
        assert started.wait(300) == 0, Path("ranks.log").read_text()
    first, second = (torch.load(f"rank-{rank}.pt") for rank in (0, 1))
    assert_same_gradients(first["gradients"], gradients(1))
    for name, gradient in first["gradients"].items():
        assert torch.equal(gradient, second["gradients"][name])
    for name, values in first["buffers"].items():  # else no network is the one that is scored
        assert torch.equal(values, second["buffers"][name]), name
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
    clips = csv.read_csv(out / "datw_confidence.csv")["clips"].to_pylist()
    assert sum(clips) == sum(map(len, batches)) / 2  # of one epoch, of both ranks
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
