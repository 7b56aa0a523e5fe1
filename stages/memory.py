"""Memory: what a training takes, what chunks take on their way, and what there is."""

from __future__ import annotations

import psutil
import torch
from torch import Tensor

from cache import TeacherCache
from cache.blocks import BLOCK_BYTES
from pipeline.config import Run
from pipeline.models import create_model
from pipeline.views import normalise

_CHUNKS_HELD = 3  # one is computed, one waits, one is written
_CHUNKS_OF_WORKER = 2  # a thread each
_PROCESS_BYTES = 800 * 2**20  # python, torch and this package, before anything is trained


def free_memory() -> int:
    """Bytes that new processes may take: of the machine, or of the container if that is less."""
    from distributed.system import MEMORY_LIMIT  # noqa: PLC0415 (takes half a second)

    return int(min(psutil.virtual_memory().available, MEMORY_LIMIT))


def memory_of(run: Run, cache: TeacherCache, decoders: int) -> int:
    """Bytes that a training on a CPU takes, about.

    Measured is what torch keeps for the backward pass of two clips, scaled to a batch; its
    gradients may take as much again. Added are the processes, and decoded chunks of a cache that
    cannot be mapped.

    Args:
        run: the config.
        cache: what is trained from.
        decoders: processes that decode.
    """
    recipe, kept = run.distill.train, 0
    model = create_model(run.distill.student, 2, dropout=recipe.dropout)

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    frames, height = model.clip.frames, model.clip.size
    clips = normalise(torch.zeros(2, frames, height, height, 3, dtype=torch.uint8), model.clip)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train().features(clips)
    batch = -(-recipe.batch_size // recipe.accumulate)
    decoded = BLOCK_BYTES if cache.unmapped else 0
    return kept * batch + decoded + (1 + decoders) * _PROCESS_BYTES


def memory_of_chunks(chunk_bytes: int, workers: int | None = None) -> int:
    """Bytes that the chunks of an extraction take on their way, at most.

    Args:
        chunk_bytes: of all that is made of a chunk, in all views.
        workers: that make chunks on this machine; None makes them in one process.
    """
    held = _CHUNKS_HELD if workers is None else _CHUNKS_OF_WORKER * workers
    return held * chunk_bytes
