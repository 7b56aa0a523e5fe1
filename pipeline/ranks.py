"""Several processes that train one network, as torchrun starts them; one alone is rank 0 of 1."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place; all must call it."""
        if self.world > 1:
            distributed.all_reduce(values)
        return values

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all ranks the values of the first one, in place; all must call it."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def gathered(self, value: Any) -> list[Any]:
        """What every rank gives, in order; all must call it. Plain objects only."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all ranks have come here."""
        if self.world > 1:
            distributed.barrier()


ALONE = Ranks()


def launched() -> bool:
    """Whether torchrun started this process."""
    return distributed.is_available() and distributed.is_torchelastic_launched()


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """Meet the other ranks: by NCCL on GPUs, of which each rank takes its own, by gloo on CPUs.

    Args:
        device: what the ranks compute on.

    Yields:
        This process among them, and its own device.
    """
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if device.type == "cuda" else device
    if own.type == "cuda":
        torch.cuda.set_device(own)
    before = distributed.is_initialized()  # the ranks of one start can meet only once
    if not before:
        distributed.init_process_group("nccl" if own.type == "cuda" else "gloo")
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size()), own
    finally:
        if not before:
            distributed.destroy_process_group()
