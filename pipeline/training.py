"""The one training step and the one training loop: teachers, baseline and student alike."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.config import Precision
from pipeline.config_training import Recipe
from pipeline.learner import Learner
from pipeline.models import VideoModel
from pipeline.objective import Batch, Method, TrainingError, loss_terms, total_loss
from pipeline.optimising import Training, uses_bf16
from pipeline.ranks import ALONE, Ranks
from pipeline.totals import Outcome, Totals
from pipeline.views import normalise


@dataclass
class EpochLog:
    """What one epoch did; `record` is what the log files get."""

    epoch: int
    record: dict[str, float] = field(default_factory=dict)
    vit_weight_by_class: list[float] = field(default_factory=list)  # NaN: class not seen
    vit_weight_by_confidence: list[list[float]] = field(default_factory=list)  # see `Totals`


# From an epoch and the number of its first batch: the batches from there on, on the device.
Batches = Callable[[int, int], Iterable[Batch]]


def train_step(
    learner: nn.Module,
    batch: Batch,
    method: Method,
    optimiser: torch.optim.Optimizer,
    clip_norm: float,
    *,
    bf16: bool = False,
    accumulate: int = 1,
) -> list[Outcome]:
    """One update: forward, loss and backward of each piece of the batch, a clipped step.

    The gradient is that of the whole batch, of all ranks together: the loss of a piece counts by
    its clips. RKD, and the norms' statistics, are of the piece. With `bf16` the network runs under
    autocast; losses, gradients and weights are float32.

    Args:
        learner: a `Learner`, perhaps wrapped for several ranks.
        batch: this rank's.
        method: the loss.
        optimiser: of the learner's parameters.
        clip_norm: of the gradient, at most.
        bf16: see above.
        accumulate: pieces.

    Raises:
        TrainingError: the loss or its gradient is not finite; the samples of the batch are named.
    """
    optimiser.zero_grad(set_to_none=True)
    outcomes: list[Outcome] = []
    pieces = batch.pieces(accumulate)
    for piece in pieces:
        with _alone(learner) if piece is not pieces[-1] else nullcontext():
            outcomes.append(_pass(learner, piece, method, bf16))
    norm = nn.utils.clip_grad_norm_(learner.parameters(), clip_norm)
    losses = torch.stack([outcome.terms["loss"] for outcome in outcomes])
    if not torch.isfinite(norm + losses.sum()):  # before it spoils the weights
        what = "gradient" if torch.isfinite(losses).all() else "loss"
        raise TrainingError(f"the {what} is not finite {_described(outcomes, batch)}")
    optimiser.step()
    return outcomes


def _pass(learner: nn.Module, piece: Batch, method: Method, bf16: bool) -> Outcome:
    """Forward and backward."""
    rows, pooled = piece.teachers, None
    if rows is not None and rows.vit_pooled is not None and rows.cnn_pooled is not None:
        pooled = rows.vit_pooled, rows.cnn_pooled
    answer = learner(piece.clips, piece.mix, pooled, bf16=bf16)
    terms, weights = loss_terms(answer, piece, method)
    loss = total_loss(terms, method.weights)
    (loss if piece.share == 1 else loss * piece.share).backward()  # type: ignore[no-untyped-call]
    detached = {name: term.detach() for name, term in {"loss": loss, **terms}.items()}
    return Outcome(piece, detached, answer, weights)


def _alone(learner: nn.Module) -> AbstractContextManager[Any]:
    """Leaves the gradient in this rank: the last piece's pass sends the sum."""
    return learner.no_sync() if isinstance(learner, DistributedDataParallel) else nullcontext()


def _described(outcomes: list[Outcome], batch: Batch) -> str:
    """The terms of the pieces, and the samples."""
    terms = [", ".join(f"{name} {term:g}" for name, term in one.terms.items()) for one in outcomes]
    return f"in batch {batch.number} ({'; '.join(terms)}), of the samples {', '.join(batch.names)}"


def train(
    training: Training,
    *,
    recipe: Recipe,
    method: Method,
    batches: Batches,
    on_step: Callable[[], object] = lambda: None,
    ranks: Ranks = ALONE,
) -> Iterator[EpochLog]:
    """Train from where a training stands; yields a log after each epoch.

    Args:
        training: see `start_training`. What it has done is not done again; after each step, and at
            each yield, it stands where a checkpoint may be written.
        recipe: epochs, …
        method: the loss.
        batches: of an epoch, from one on; see `Batches`. It may hold fewer than were announced to
            `start_training`, never more.
        on_step: called after each step.
        ranks: those that train together.

    Raises:
        TrainingError: the loss or its gradient is not finite, a term needs cached rows that are
            not there, or an epoch holds more batches than announced.
    """
    learner = training.learner
    device = next(learner.parameters()).device
    wrapped = _wrapped(learner, recipe, device, ranks)
    bf16 = uses_bf16(recipe.precision, device)
    for epoch in range(training.epochs_done, recipe.epochs):
        learner.train()
        totals = training.totals
        for batch in _timed(batches(epoch, training.steps_done), totals):
            outcomes = train_step(
                wrapped,
                batch,
                method,
                training.optimiser,
                recipe.clip_norm,
                bf16=bf16,
                accumulate=recipe.accumulate,
            )
            training.schedule.step()
            if training.average is not None:
                training.average.update(learner.model)
            for outcome in outcomes:
                totals.add(outcome)
            training.steps_done = batch.number + 1
            on_step()
        if recipe.precise_bn:
            again = partial(batches, epoch, 0)
            count = min(recipe.precise_bn, training.steps_done)
            set_precise_statistics(training.result, again, count, bf16=bf16)
        # Each has its own statistics of the norms; what is scored and saved is one network.
        ranks.share([*learner.buffers(), *training.result.buffers()])
        record = totals.means(ranks)
        record["learning_rate"] = float(max(training.schedule.get_last_lr()))
        clips = float(ranks.total(totals.counts["loss"].clone())) if totals.counts else 0.0
        record["clips_per_sec"] = clips / max(totals.seconds, 1e-9)
        record["waited"] = totals.waited / max(totals.seconds, 1e-9)
        log = EpochLog(
            epoch=epoch,
            record=record,
            vit_weight_by_class=totals.vit_weight_by_class(ranks),
            vit_weight_by_confidence=totals.vit_weight_by_confidence(ranks),
        )
        training.begin_epoch(epoch + 1)
        yield log


def _wrapped(learner: Learner, recipe: Recipe, device: torch.device, ranks: Ranks) -> nn.Module:
    """The learner as it is called: compiled and for several ranks, if that is asked for."""
    if recipe.compile:
        learner.compile()
    if ranks.world == 1:
        return learner
    # Convolutions give gradients in channels_last_3d, its buckets are contiguous: it copies.
    warnings.filterwarnings("ignore", message="Grad strides do not match")
    return DistributedDataParallel(learner, [device] if device.type == "cuda" else None)


def _timed(batches: Iterable[Batch], totals: Totals) -> Iterator[Batch]:
    """Pass batches on; count the time until each is there, and that of all."""
    asked = time.perf_counter()
    for batch in batches:
        ready = time.perf_counter()
        totals.waited += ready - asked
        yield batch
        totals.seconds += time.perf_counter() - asked
        asked = time.perf_counter()


@torch.no_grad()
def set_precise_statistics(
    model: VideoModel, batches: Callable[[], Iterable[Batch]], count: int, *, bf16: bool = False
) -> None:
    """Give batch norms the statistics of so many batches under the weights as they are.

    "Rethinking 'Batch' in BatchNorm", Wu and Johnson, arXiv 2105.07576, section 3; by fvcore. A
    network without batch norms stays as it is, and so do torch's random states.

    Args:
        model: changed in place; in training mode afterwards.
        batches: from the first on, none of them kept; asked for again where they end early.
        count: so many.
        bf16: whether the network runs under autocast.
    """
    model.train()
    if not get_bn_modules(model):
        return
    device = next(model.parameters()).device

    class Net(nn.Module):
        """From a batch to logits."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Batch) -> Tensor:
            clips = normalise(batch.clips, model.clip)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits: Tensor = model(clips.contiguous(memory_format=torch.channels_last_3d))
            return logits

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        repeated = chain.from_iterable(iter(batches, None))
        update_bn_stats(Net().train(), repeated, count)


def epoch_batches(*, rows: int, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The order of an epoch: a permutation seeded by (seed, epoch), cut into even batches.

    Every row occurs once; batches differ by at most one row, so none is tiny.
    """
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return np.array_split(order, steps_in_epoch(rows, batch_size))


def steps_in_epoch(rows: int, batch_size: int) -> int:
    """Number of batches of an epoch."""
    return max(1, -(-rows // batch_size))


@torch.inference_mode()
def predict(model: VideoModel, clips: Tensor, precision: Precision = "fp32") -> dict[str, Tensor]:
    """Logits by head of clips (B, T, H, W, 3) uint8, in evaluation mode."""
    model.eval()
    bf16 = uses_bf16(precision, clips.device)
    with torch.autocast(clips.device.type, torch.bfloat16, enabled=bf16):
        logits = model(normalise(clips, model.clip))
    return model.split_heads(logits.float())
