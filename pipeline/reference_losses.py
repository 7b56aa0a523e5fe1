"""The losses that the method is compared with: other weightings, decoupled KD, mimicry.

Shapes, precision and constants are as in `losses`. Sources: entropy, Kwon et al., ICASSP 2020,
doi 10.1109/ICASSP40776.2020.9054698; decoupled KD, Zhao et al., CVPR 2022, arXiv 2203.08679;
mimicry of features, FitNets, Romero et al., arXiv 1412.6550.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the field's own name)

from pipeline.losses import EFFICACY_FLOOR, check_logits, confidence, full


@torch.no_grad()
def entropy_weights(*, vit_logits: Tensor, cnn_logits: Tensor) -> Tensor:
    """Teacher weights by entropy alone: ω_t ∝ 1 / (H_t + ε), so that the surer teacher leads.

    Here H is a share of log K, and ε = `losses.EFFICACY_FLOOR`. The paper asks that a teacher of
    lower entropy has the larger rate; its inverse is the plainest rule that does.

    Args:
        vit_logits: (B, K).
        cnn_logits: (B, K).

    Returns:
        (B, 2) in the order ViT, CNN; rows sum to 1.

    Raises:
        ValueError: The shapes differ, or are not (B, K) with K of at least 2.
    """
    check_logits(vit_logits=vit_logits, cnn_logits=cnn_logits)
    entropies = [1 - confidence(logits=logits) for logits in (vit_logits, cnn_logits)]
    inverse = 1 / (torch.stack(entropies, dim=1) + EFFICACY_FLOOR)  # (B, 2)
    return inverse / inverse.sum(dim=1, keepdim=True)


def dkd_loss(
    *,
    student_logits: Tensor,
    target_logits: Tensor,
    labels: Tensor,
    temperature: float,
    beta: float,
) -> Tensor:
    """Decoupled distillation τ² · (TCKD + β · NCKD), per sample.

    TCKD is the divergence of (the label's class, all others), NCKD that among the others. With
    β = 1 - p, p the target's probability of the label, it is `losses.kd_loss`. A sample without a
    label has no such parts: 0.

    Args:
        student_logits: (B, K).
        target_logits: (B, K); a constant, no gradient flows into it.
        labels: (B,) int64; negative where there is none.
        temperature: τ, positive.
        beta: β, of the other classes; the paper's α, of the label's, is 1.

    Returns:
        (B,) in nats · τ².

    Raises:
        ValueError: The shapes differ, are not (B, K) with K of at least 2, or τ is not positive.
    """
    check_logits(student_logits=student_logits, target_logits=target_logits)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature {temperature} must be a positive number, for example 1.0")
    places = labels.clamp(min=0)[:, None]  # (B, 1)
    parts = []
    for logits in (student_logits, target_logits.detach()):
        log_probs = F.log_softmax(full(logits) / temperature, dim=1)
        of_label = log_probs.gather(1, places)
        others = log_probs.scatter(1, places, -torch.inf)
        of_others = others.logsumexp(dim=1, keepdim=True)
        # The label's class has no part among the others: 0 on both sides.
        among = (others - of_others).scatter(1, places, 0.0)
        parts.append((torch.cat([of_label, of_others], dim=1), among))
    (student_pair, student_among), (pair, among) = parts
    tckd = (pair.exp() * (pair - student_pair)).sum(dim=1)
    nckd = (among.exp() * (among - student_among)).sum(dim=1)
    return torch.where(labels >= 0, temperature**2 * (tckd + beta * nckd), 0.0)


def mimicry_loss(*, predicted: Tensor, target: Tensor) -> Tensor:
    """Squared error of predicted features, relative to the targets' spread, per sample.

    The mean squared error over the variance of the target around the batch's mean: 1 where the
    prediction is no better than that mean, so that λ means the same for every teacher.

    Args:
        predicted: (B, C).
        target: (B, C); a constant, no gradient flows into it.

    Returns:
        (B,).

    Raises:
        ValueError: The shapes differ or are not (B, C).
    """
    if predicted.shape != target.shape or predicted.ndim != 2:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)} must have one "
            "shape (batch, features)"
        )
    fixed = full(target.detach())
    spread = (fixed - fixed.mean(dim=0)).square().mean()
    return (full(predicted) - fixed).square().mean(dim=1) / spread.clamp(min=1e-12)
