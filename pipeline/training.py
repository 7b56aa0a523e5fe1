"""The one training step and the one training loop: teachers, baseline and student alike.

L = CE + λ_kd·L_DATW + λ_sdd·L_SDD + λ_rkd·(L_dist + 2·L_angle), arXiv 2511.09469. A term whose
weight is 0 is not computed; with all weights at 0 this is plain supervised training.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pipeline.config import Recipe, Weights
from pipeline.losses import (
    blend_targets,
    kd_loss,
    residual_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    teacher_weights,
)
from pipeline.models import Features, VideoModel
from pipeline.views import normalise

Given = TypeVar("Given")


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and where."""


@dataclass(frozen=True)
class TeacherRows:
    """Cached rows of a batch, in its order; what no term reads may be None.

    Attributes:
        vit_logits: by head, (B, K).
        cnn_logits: by head, (B, K).
        vit_pooled: (B, C).
        residual: (B, D, T', H', W').
    """

    vit_logits: dict[str, Tensor | None]
    cnn_logits: dict[str, Tensor | None]
    vit_pooled: Tensor | None
    residual: Tensor | None


@dataclass(frozen=True)
class Batch:
    """What one step sees.

    Attributes:
        names: sample ids, for messages.
        clips: (B, T, H, W, 3) uint8.
        labels: by head, (B,) int64.
        teachers: the cached rows; None where the loss needs none.
    """

    names: list[str]
    clips: Tensor
    labels: dict[str, Tensor]
    teachers: TeacherRows | None = None


@dataclass(frozen=True)
class Method:
    """Which loss: the weights of its terms, the temperature, the smoothing of the labels."""

    weights: Weights
    temperature: float = 1.0
    label_smoothing: float = 0.0

    @property
    def needs_teachers(self) -> bool:
        """Whether any term reads cached rows."""
        return any((self.weights.kd, self.weights.sdd, self.weights.rkd))


LABELS_ONLY = Weights(kd=0.0, sdd=0.0, rkd=0.0)


@dataclass
class EpochLog:
    """What one epoch did; `record` is what the log files get."""

    epoch: int
    record: dict[str, float] = field(default_factory=dict)
    vit_weight_by_class: list[float] = field(default_factory=list)  # NaN: class not seen


def loss_terms(
    answer: Features, branch: nn.Module | None, batch: Batch, method: Method
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The terms of the loss, unweighted, and DATW's weights of the first head.

    Args:
        answer: the student's outputs.
        branch: the structure discrepancy branch; needed where λ_sdd > 0.
        batch: labels, and cached rows where a term needs them.
        method: which terms.

    Returns:
        Terms by name, each (); and the teacher weights (B, 2) in the order ViT, CNN, or None.

    Raises:
        TrainingError: a term needs cached rows or a branch that are not there.
    """
    terms: dict[str, Tensor] = {}
    per_head = [
        functional.cross_entropy(
            answer.logits[head], labels, label_smoothing=method.label_smoothing
        )
        for head, labels in batch.labels.items()
    ]
    terms["ce"] = torch.stack(per_head).mean()
    if not method.needs_teachers:
        return terms, None
    teachers, first_weights = _given(batch.teachers, "cached rows of the teachers"), None
    if method.weights.kd > 0:
        losses = []
        for head, student_logits in answer.logits.items():
            vit_logits = _given(teachers.vit_logits.get(head), f"vit/logits/{head}")
            cnn_logits = _given(teachers.cnn_logits.get(head), f"cnn/logits/{head}")
            weights = teacher_weights(
                student_logits=student_logits, vit_logits=vit_logits, cnn_logits=cnn_logits
            )
            first_weights = weights if first_weights is None else first_weights
            target = blend_targets(weights=weights, vit_logits=vit_logits, cnn_logits=cnn_logits)
            losses.append(
                kd_loss(
                    student_logits=student_logits,
                    target_logits=target,
                    temperature=method.temperature,
                ).mean()
            )
        terms["kd"] = torch.stack(losses).mean()
    if method.weights.sdd > 0:
        predicted = _given(branch, "structure discrepancy branch")(answer.map)
        target = _given(teachers.residual, "residual")  # (B, D, T', H', W'), both
        terms["sdd"] = residual_loss(predicted=predicted, target=target).mean()
    if method.weights.rkd > 0:
        pair = {"student": answer.pooled, "teacher": _given(teachers.vit_pooled, "vit/pooled")}
        terms["rkd"] = rkd_distance_loss(**pair) + 2 * rkd_angle_loss(**pair)
    return terms, first_weights


def _given(value: Given | None, name: str) -> Given:
    if value is None:
        raise TrainingError(f"a term of the loss needs {name}, which is not there; set its λ to 0")
    return value


def total_loss(terms: dict[str, Tensor], weights: Weights) -> Tensor:
    """CE + Σ λ·term, ()."""
    total = terms["ce"]
    for name in ("kd", "sdd", "rkd"):
        if name in terms:
            total = total + getattr(weights, name) * terms[name]
    return total


def train_step(
    model: VideoModel,
    branch: nn.Module | None,
    batch: Batch,
    method: Method,
    optimiser: torch.optim.Optimizer,
    clip_norm: float,
) -> tuple[dict[str, Tensor], Features, Tensor | None]:
    """One step: forward, loss, backward, clipped update.

    Raises:
        TrainingError: the loss or its gradient is not finite; the samples of the batch are named.
    """
    clips = normalise(batch.clips, model.clip)  # (B, 3, T, H, W)
    answer = model.features(clips.contiguous(memory_format=torch.channels_last_3d))
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

    Raises:
        TrainingError: the loss or its gradient is not finite, a term needs cached rows that are
            not there, or an epoch holds more batches than announced.
    """
    model.to(memory_format=torch.channels_last_3d)
    optimiser = make_optimiser(model, branch, recipe)
    schedule = make_schedule(optimiser, recipe, steps_per_epoch)
    for epoch in range(recipe.epochs):
        model.train()
        started, seen = time.perf_counter(), 0
        sums: dict[str, float] = defaultdict(float)
        led = _ClassMeans(max(model.heads.values()))
        for batch in batches(epoch):
            terms, answer, weights = train_step(
                model, branch, batch, method, optimiser, recipe.clip_norm
            )
            schedule.step()
            size = len(batch.names)
            seen += size
            for name, term in terms.items():
                sums[name] += float(term.detach()) * size
            for head, labels in batch.labels.items():
                hits = (answer.logits[head].argmax(1) == labels).sum()
                sums[f"accuracy/{head}"] += float(hits)
            if weights is not None:
                led.add(next(iter(batch.labels.values())), weights[:, 0])
                sums["vit_weight"] += float(weights[:, 0].sum())
                sums["vit_leads"] += float((weights[:, 0] > 0.5).sum())
            on_step()
        record = {name: value / max(seen, 1) for name, value in sums.items()}
        record["learning_rate"] = float(schedule.get_last_lr()[0])
        record["clips_per_sec"] = seen / (time.perf_counter() - started)
        yield EpochLog(epoch=epoch, record=record, vit_weight_by_class=led.means())


def make_optimiser(
    model: VideoModel, branch: nn.Module | None, recipe: Recipe
) -> torch.optim.Optimizer:
    """AdamW without weight decay on biases and norms (timm's grouping)."""
    modules = nn.ModuleList([model] if branch is None else [model, branch])
    groups = param_groups_weight_decay(modules, recipe.weight_decay)
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


def make_schedule(
    optimiser: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> LRScheduler:
    """Warm-up from a 25th of the rate over `warmup_share` of the steps, then decay to 0.

    Both follow half a cosine, as torch's `OneCycleLR` does; that one divides by 0 where the
    warm-up is exactly one step.
    """
    steps = recipe.epochs * steps_per_epoch
    peak = recipe.warmup_share * (steps + 1) - 1  # the step of the greatest rate, from 0

    def share(step: int) -> float:
        if step > steps:
            raise TrainingError(f"an epoch holds more than the {steps_per_epoch} batches announced")
        if step < peak:
            return 1 - (1 - 1 / 25) * _half_cosine(step / peak)
        return _half_cosine((step - peak) / (steps - peak))

    return LambdaLR(optimiser, share)


def _half_cosine(way: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return (1 + math.cos(math.pi * way)) / 2


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
def predict(model: VideoModel, clips: Tensor) -> dict[str, Tensor]:
    """Logits by head of clips (B, T, H, W, 3) uint8, in evaluation mode."""
    model.eval()
    return model.split_heads(model(normalise(clips, model.clip)))


class _ClassMeans:
    """Mean of a number per class."""

    def __init__(self, classes: int) -> None:
        self._sums = torch.zeros(classes, dtype=torch.float64)
        self._counts = torch.zeros(classes, dtype=torch.float64)

    def add(self, labels: Tensor, values: Tensor) -> None:
        self._sums.index_add_(0, labels.cpu(), values.detach().cpu().double())
        self._counts.index_add_(0, labels.cpu(), torch.ones(len(labels), dtype=torch.float64))

    def means(self) -> list[float]:
        if not self._counts.any():
            return []
        return [float(mean) for mean in self._sums / self._counts]


def _parameters(model: nn.Module, branch: nn.Module | None) -> list[nn.Parameter]:
    return [*model.parameters(), *(branch.parameters() if branch is not None else ())]
