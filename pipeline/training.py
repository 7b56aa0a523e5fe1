"""The one training step and the one training loop: teachers, baseline and student alike."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import Precision, Recipe
from pipeline.mixing import mix_clips
from pipeline.models import Features, VideoModel
from pipeline.objective import NO_LABEL, Batch, Method, TrainingError, loss_terms, total_loss
from pipeline.optimising import Training, start_training, uses_bf16
from pipeline.views import normalise


@dataclass
class EpochLog:
    """What one epoch did; `record` is what the log files get."""

    epoch: int
    record: dict[str, float] = field(default_factory=dict)
    vit_weight_by_class: list[float] = field(default_factory=list)  # NaN: class not seen


def train_step(
    model: VideoModel,
    branch: nn.Module | None,
    batch: Batch,
    method: Method,
    optimiser: torch.optim.Optimizer,
    clip_norm: float,
    *,
    bf16: bool = False,
) -> tuple[dict[str, Tensor], Features, Tensor | None]:
    """One step: forward, loss, backward, clipped update.

    With `bf16` the network runs under autocast; losses, gradients and weights are float32.

    Raises:
        TrainingError: the loss or its gradient is not finite; the samples of the batch are named.
    """
    clips = normalise(batch.clips, model.clip)  # (B, 3, T, H, W)
    if batch.mix is not None:
        clips = mix_clips(clips, batch.mix)
    with torch.autocast(clips.device.type, torch.bfloat16, enabled=bf16):
        answer = model.features(clips.contiguous(memory_format=torch.channels_last_3d))
    if bf16:
        answer = answer.float32()
    terms, weights = loss_terms(answer, branch, batch, method)
    loss = total_loss(terms, method.weights)
    _check_finite("loss", loss, terms, batch)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(_parameters(model, branch), clip_norm)
    _check_finite("gradient", norm, terms, batch)  # before it spoils the weights
    optimiser.step()
    return {"loss": loss, **terms}, answer, weights


def _check_finite(what: str, value: Tensor, terms: dict[str, Tensor], batch: Batch) -> None:
    if not torch.isfinite(value):
        values = ", ".join(f"{name} {float(term.detach()):g}" for name, term in terms.items())
        raise TrainingError(
            f"the {what} is not finite ({values}) on the samples {', '.join(batch.names)}"
        )


def train(
    *,
    model: VideoModel,
    branch: nn.Module | None,
    recipe: Recipe,
    method: Method,
    batches: Callable[[int], Iterable[Batch]],
    steps_per_epoch: int,
    on_step: Callable[[], object] = lambda: None,
    training: Training | None = None,
) -> Iterator[EpochLog]:
    """Train in place; yields a log after each epoch.

    Args:
        model: the network, on its device.
        branch: the structure discrepancy branch, or None.
        recipe: epochs, learning rate, …
        method: the loss.
        batches: epoch → its batches, on the model's device.
        steps_per_epoch: for the schedule; an epoch may hold fewer batches, never more.
        on_step: called after each step, for a progress bar.
        training: of this model and branch, as it stands: the epochs that it has done are not done
            again. None starts one, with the optimiser's defaults.

    Raises:
        TrainingError: the loss or its gradient is not finite, a term needs cached rows that are
            not there, or an epoch holds more batches than announced.
    """
    if training is None:
        training = start_training(model, branch, recipe, steps_per_epoch)
    bf16 = uses_bf16(recipe.precision, next(model.parameters()).device)
    for epoch in range(training.epochs_done, recipe.epochs):
        model.train()
        started, seen = time.perf_counter(), 0
        sums: dict[str, float] = defaultdict(float)
        labelled: Counter[str] = Counter()
        led = _ClassMeans(max(model.heads.values()))
        for batch in batches(epoch):
            terms, answer, weights = train_step(
                model, branch, batch, method, training.optimiser, recipe.clip_norm, bf16=bf16
            )
            training.schedule.step()
            if training.average is not None:
                training.average.update(model)
            size = len(batch.names)
            seen += size
            for name, term in terms.items():
                sums[name] += float(term.detach()) * size
            all_right = torch.ones(size, dtype=torch.bool, device=batch.clips.device)
            for head, labels in batch.labels.items():
                main = labels if batch.mix is None else batch.mix.main(labels)
                right = answer.logits[head].argmax(1) == main
                all_right &= right
                sums[f"accuracy/{head}"] += float(right.sum())
                labelled[f"accuracy/{head}"] += int((main != NO_LABEL).sum())
            if len(batch.labels) > 1:  # of all heads together, over the samples that are seen
                sums["accuracy/action"] += float(all_right.sum())
            if weights is not None:
                led.add(next(iter(batch.labels.values())), weights[:, 0])
                sums["vit_weight"] += float(weights[:, 0].sum())
                sums["vit_leads"] += float((weights[:, 0] > 0.5).sum())
            on_step()
        counts = {name: labelled.get(name, seen) for name in sums}
        record = {name: value / max(counts[name], 1) for name, value in sums.items()}
        record["learning_rate"] = float(max(training.schedule.get_last_lr()))
        record["clips_per_sec"] = seen / (time.perf_counter() - started)
        training.epochs_done = epoch + 1
        yield EpochLog(epoch=epoch, record=record, vit_weight_by_class=led.means())


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


class _ClassMeans:
    """Mean of a number per class."""

    def __init__(self, classes: int) -> None:
        self._sums = torch.zeros(classes, dtype=torch.float64)
        self._counts = torch.zeros(classes, dtype=torch.float64)

    def add(self, labels: Tensor, values: Tensor) -> None:
        has_label = labels != NO_LABEL
        labels, values = labels[has_label], values[has_label]
        self._sums.index_add_(0, labels.cpu(), values.detach().cpu().double())
        self._counts.index_add_(0, labels.cpu(), torch.ones(len(labels), dtype=torch.float64))

    def means(self) -> list[float]:
        if not self._counts.any():
            return []
        return [float(mean) for mean in self._sums / self._counts]


def _parameters(model: nn.Module, branch: nn.Module | None) -> list[nn.Parameter]:
    return [*model.parameters(), *(branch.parameters() if branch is not None else ())]
