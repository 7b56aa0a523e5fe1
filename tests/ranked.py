"""What each of two ranks does in `test_pipeline_ranks`.

Runs in a folder with a miniature run up to `extract`, started by torchrun; leaves `rank-<n>.pt` and
what `distill` writes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from cache import open_cache
from chain_making import write_config
from pipeline.objective import Method
from pipeline.ranks import Ranks, joined
from pipeline.training import train_step
from stages.distill import Options, distill
from stages.feed import Feed, used_part
from training_making import WITHOUT_RKD, learner_of, make_batch, make_network

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
    run = write_config(Path.cwd())
    cache = open_cache(run.cache_path)
    feed = Feed(run, cache, used_part(run, cache), CPU, 0, ranks)
    return [batch.names for epoch in (0, 1) for batch in feed(epoch)]


def main() -> None:
    """Leave what the test compares."""
    torch.set_num_threads(1)
    with joined(CPU) as (ranks, _):
        left = {"gradients": gradients(ranks), "batches": batches(ranks)}
        torch.save(left, f"rank-{ranks.rank}.pt")
        run = write_config(Path.cwd())
        distill(run, Options(run.cache_path, CPU, 0))


if __name__ == "__main__":
    main()
