"""The loss of one step: its terms, from the student's outputs, the labels and the cached rows.

L = CE + λ_kd·L_DATW + λ_sdd·L_SDD + λ_rkd·(L_dist + 2·L_angle), arXiv 2511.09469, and the terms
that it is compared with. A term whose weight is 0 is not computed; with all weights at 0 this is
plain supervised training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config_training import Weighting, Weights
from pipeline.learner import Answer
from pipeline.losses import (
    blend_targets,
    kd_loss,
    residual_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    teacher_weights,
)
from pipeline.mixing import Mix
from pipeline.reference_losses import dkd_loss, entropy_weights, mimicry_loss

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
        cnn_pooled: (B, C).
    """

    vit_logits: dict[str, Tensor | None]
    cnn_logits: dict[str, Tensor | None]
    vit_pooled: Tensor | None = None
    residual: Tensor | None = None
    cnn_pooled: Tensor | None = None

    def part(self, rows: slice) -> TeacherRows:
        """Some of the rows."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[rows]

        return TeacherRows(
            {head: cut(logits) for head, logits in self.vit_logits.items()},
            {head: cut(logits) for head, logits in self.cnn_logits.items()},
            cut(self.vit_pooled),
            cut(self.residual),
            cut(self.cnn_pooled),
        )


@dataclass(frozen=True)
class Batch:
    """What one rank sees of one step.

    Attributes:
        names: sample ids, for messages.
        clips: (B, T, H, W, 3) uint8.
        labels: by head, (B,) int64; `NO_LABEL` where a sample has none of that head.
        teachers: the cached rows; None where the loss needs none.
        mix: how clips and labels are mixed with the batch in reverse; None leaves them.
        number: of the step in its epoch, from 0.
        share: what its mean loss counts in the mean over ranks; 1 where all have as many clips.
    """

    names: list[str]
    clips: Tensor
    labels: dict[str, Tensor]
    teachers: TeacherRows | None = None
    mix: Mix | None = None
    number: int = 0
    share: float = 1.0

    def pieces(self, count: int) -> list[Batch]:
        """The batch in at most so many even pieces, each with its share of the whole."""
        size = len(self.names)
        count = min(count, size)
        if count == 1:
            return [self]
        ends = [size * piece // count for piece in range(count + 1)]
        return [self._part(slice(ends[at], ends[at + 1])) for at in range(count)]

    def _part(self, rows: slice) -> Batch:
        return replace(
            self,
            names=self.names[rows],
            clips=self.clips[rows],
            labels={head: labels[rows] for head, labels in self.labels.items()},
            teachers=None if self.teachers is None else self.teachers.part(rows),
            share=self.share * (rows.stop - rows.start) / len(self.names),
        )


@dataclass(frozen=True)
class Method:
    """Which loss.

    Attributes:
        weights: λ of its terms.
        weighting: how two teachers become one target of KD.
        temperature: τ.
        dkd_beta: β of decoupled KD.
        label_smoothing: share of a label's target that is spread over all classes.
    """

    weights: Weights
    weighting: Weighting = "datw"
    temperature: float = 1.0
    dkd_beta: float = 8.0
    label_smoothing: float = 0.0

    @property
    def needs_teachers(self) -> bool:
        """Whether any term reads cached rows."""
        return any(weight > 0 for _, weight in self.weights)

    @property
    def blends(self) -> bool:
        """Whether any term reads the teachers' logits."""
        return self.weights.kd > 0 or self.weights.dkd > 0

    @property
    def vit_logits(self) -> bool:
        """Whether the ViT's logits are read."""
        return self.blends and self.weighting != "cnn"

    @property
    def cnn_logits(self) -> bool:
        """Whether the CNN's logits are read."""
        return self.blends and self.weighting != "vit"


NO_LABEL = -100  # what torch's cross-entropy ignores
LABELS_ONLY = Weights(kd=0.0, sdd=0.0, rkd=0.0)


def loss_terms(
    answer: Answer, batch: Batch, method: Method
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The terms of the loss, unweighted, and the teachers' weights of the first head.

    Args:
        answer: the learner's outputs.
        batch: labels, and cached rows where a term needs them.
        method: which terms.

    Returns:
        Terms by name, each (); and the teacher weights (B, 2) in the order ViT, CNN, or None where
        there is one teacher or none.

    Raises:
        TrainingError: a term needs cached rows or a part that is not there.
    """
    student, weights = answer.student, method.weights
    per_head = [
        cross_entropy(student.logits[head], labels, method.label_smoothing, batch.mix)
        for head, labels in batch.labels.items()
    ]
    terms = {"ce": torch.stack(per_head).mean()}
    if not method.needs_teachers:
        return terms, None
    teachers, first_weights = _given(batch.teachers, "cached rows of the teachers"), None
    if method.blends:
        losses: dict[str, list[Tensor]] = {"kd": [], "dkd": []}
        for head, logits in student.logits.items():
            target, led = _target(head, logits, teachers, method)
            first_weights = led if first_weights is None else first_weights
            pair = {"student_logits": logits, "target_logits": target}
            if weights.kd > 0:
                losses["kd"].append(kd_loss(**pair, temperature=method.temperature).mean())
            if weights.dkd > 0:
                each = dkd_loss(
                    **pair,
                    labels=batch.labels[head],
                    temperature=method.temperature,
                    beta=method.dkd_beta,
                )
                losses["dkd"].append(each.mean())
        terms |= {
            name: torch.stack(of_heads).mean() for name, of_heads in losses.items() if of_heads
        }
    if weights.sdd > 0:
        predicted = _given(answer.predicted.get("sdd"), "structure discrepancy branch")
        target = _given(teachers.residual, "residual")  # (B, D, T', H', W'), both
        terms["sdd"] = residual_loss(predicted=predicted, target=target).mean()
    if weights.rkd > 0:
        features = {"student": student.pooled, "teacher": _given(teachers.vit_pooled, "vit/pooled")}
        terms["rkd"] = rkd_distance_loss(**features) + 2 * rkd_angle_loss(**features)
    if weights.mimic > 0:
        predicted = _given(answer.predicted.get("mimic"), "a part that predicts the ViT's features")
        target = _given(teachers.vit_pooled, "vit/pooled")
        terms["mimic"] = mimicry_loss(predicted=predicted, target=target).mean()
    if weights.learned_sdd > 0:
        predicted = _given(answer.predicted.get("learned_sdd"), "a part with a learned φ")
        # Its gradient goes into φ too, as in the paper: `residual_loss` would stop it.
        target = _given(answer.target, "vit/pooled and cnn/pooled")
        terms["learned_sdd"] = functional.mse_loss(predicted, target)
    return terms, first_weights


def _target(
    head: str, student_logits: Tensor, teachers: TeacherRows, method: Method
) -> tuple[Tensor, Tensor | None]:
    """The logits (B, K) that the student is to have, and the weights (B, 2) of two teachers."""
    vit = _given(teachers.vit_logits.get(head), f"vit/logits/{head}") if method.vit_logits else None
    cnn = _given(teachers.cnn_logits.get(head), f"cnn/logits/{head}") if method.cnn_logits else None
    if vit is None or cnn is None:
        return _given(cnn if vit is None else vit, f"logits/{head}"), None
    pair = {"vit_logits": vit, "cnn_logits": cnn}
    if method.weighting in ("datw", "datw_centred"):
        centred = method.weighting == "datw_centred"
        weights = teacher_weights(student_logits=student_logits, **pair, centred=centred)
    elif method.weighting == "entropy":
        weights = entropy_weights(**pair)
    else:
        weights = torch.full((len(vit), 2), 0.5, device=vit.device)
    return blend_targets(weights=weights, **pair), weights


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
    for name, weight in weights:
        if name in terms:
            total = total + weight * terms[name]
    return total
