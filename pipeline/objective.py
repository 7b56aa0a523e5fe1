"""The loss of one step: its terms, from the student's outputs, the labels and the cached rows.

L = CE + λ_kd·L_DATW + λ_sdd·L_SDD + λ_rkd·(L_dist + 2·L_angle), arXiv 2511.09469. A term whose
weight is 0 is not computed; with all weights at 0 this is plain supervised training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import Weights
from pipeline.losses import (
    blend_targets,
    kd_loss,
    residual_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    teacher_weights,
)
from pipeline.mixing import Mix
from pipeline.models import Features

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
        labels: by head, (B,) int64; `NO_LABEL` where a sample has none of that head.
        teachers: the cached rows; None where the loss needs none.
        mix: how clips and labels are mixed with the batch in reverse; None leaves them.
    """

    names: list[str]
    clips: Tensor
    labels: dict[str, Tensor]
    teachers: TeacherRows | None = None
    mix: Mix | None = None


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


NO_LABEL = -100  # what torch's cross-entropy ignores
LABELS_ONLY = Weights(kd=0.0, sdd=0.0, rkd=0.0)


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
        cross_entropy(answer.logits[head], labels, method.label_smoothing, batch.mix)
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


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float, mix: Mix | None) -> Tensor:
    """Mean cross-entropy of one head over its labelled samples, (); 0 where none is labelled.

    A mixed clip has two labels, of weights `mix.share` and 1 - `mix.share`: the cross-entropy is
    linear in its target, so theirs are added. A label that is not there adds nothing.

    Args:
        logits: (B, K).
        labels: (B,) int64.
        smoothing: share of the target that is spread over all classes.
        mix: how the clips were mixed.
    """
    if not (labels != NO_LABEL).any():
        return logits.sum() * 0.0
    if mix is None:
        return functional.cross_entropy(
            logits, labels, ignore_index=NO_LABEL, label_smoothing=smoothing
        )
    total = logits.new_zeros(())
    for share, of_share in ((mix.share, labels), (1 - mix.share, labels.flip(0))):
        per_sample = functional.cross_entropy(
            logits, of_share, ignore_index=NO_LABEL, label_smoothing=smoothing, reduction="none"
        )
        total = total + share * per_sample.sum()
    return total / (labels != NO_LABEL).sum()


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
