"""What each of two ranks does in `test_pipeline_ranks`.

Runs in a folder with a miniature run up to `extract`, started by torchrun; leaves `rank-<n>.pt` and
what `distill` writes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from cache import open_cache
from pipeline.config_file import config_path, load_config
from pipeline.objective import Batch, Method
from pipeline.optimising import start_training
from pipeline.ranks import Ranks, joined
from pipeline.training import train, train_step
from stages.distill import Options, distill
from stages.feed import Feed, used_part
from training_making import WITHOUT_RKD, learner_of, make_batch, make_network, make_recipe

CPU = torch.device("cpu")
SIZE = 6  # of the batch: the ranks get 3 clips each, in two pieces


def gradients(ranks: Ranks) -> dict[str, Any]:
    """After a step on this rank's half; the norms keep their statistics."""
    learner = learner_of(*make_network()).eval()
    own = make_batch(SIZE).pieces(ranks.world)[ranks.rank]
    own = replace(own, share=own.share * ranks.world)  # as the feed has it
    wrapped = DistributedDataParallel(learner)
    optimiser = torch.optim.SGD(learner.parameters(), lr=0.0)
    train_step(wrapped, own, Method(WITHOUT_RKD), optimiser, 1e9, accumulate=2)
    return {name: p.grad for name, p in learner.named_parameters()}


def batches(ranks: Ranks) -> list[list[str]]:
    """The samples that this rank sees in two epochs."""
    run = load_config(config_path("mini"))  # not written: both ranks would do it at once
    cache = open_cache(run.cache_path)
    feed = Feed(run, cache, used_part(run, cache), CPU, 0, ranks)
    return [batch.names for epoch in (0, 1) for batch in feed(epoch)]


def buffers(ranks: Ranks) -> dict[str, Any]:
    """The norms' statistics after an epoch on this rank's halves."""
    learner = learner_of(*make_network())
    training = start_training(learner, make_recipe(epochs=1, ema_decay=0.5, precise_bn=1), 2)

    def halves(_epoch: int, first: int) -> Iterator[Batch]:
        for number in range(first, 2):
            own = make_batch(SIZE, seed=number).pieces(ranks.world)[ranks.rank]
            yield replace(own, share=own.share * ranks.world, number=number)

    method = Method(WITHOUT_RKD)
    list(
        train(
            training,
            recipe=make_recipe(epochs=1, precise_bn=1),
            method=method,
            batches=halves,
            ranks=ranks,
        )
    )
    return {
        **dict(learner.named_buffers()),
        **{f"average/{name}": b for name, b in training.result.named_buffers()},
    }


def main() -> None:
    """Leave what the test compares."""
    torch.set_num_threads(1)
    with joined(CPU) as (ranks, _):
        if sys.argv[1:] == ["distill"]:
            run = load_config(config_path("mini"))
            distill(run, Options(run.cache_path, CPU, 0, checkpoint_steps=1))
            return
        left = {
            "gradients": gradients(ranks),
            "batches": batches(ranks),
            "buffers": buffers(ranks),
        }
        torch.save(left, f"rank-{ranks.rank}.pt")
        run = load_config(config_path("mini"))
        distill(run, Options(run.cache_path, CPU, 0))


if __name__ == "__main__":
    main()
