"""The losses of the method: pure functions of tensors, per sample where a sample has its own.

Everywhere B is the batch and K the number of classes of one label head. Half precision (cached
float16 targets, bfloat16 under autocast) is computed in float32. Targets and teachers are
constants: no gradient flows into them.

Sources: the method, arXiv 2511.09469 (https://arxiv.org/abs/2511.09469); temperature scaling,
Hinton et al., arXiv 1503.02531; relational distillation, Park et al., CVPR 2019, arXiv 1904.05068.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the field's own name)

EFFICACY_FLOOR = 1e-6
"""ε of the teacher weights: above float32's rounding of a cosine, far below any real efficacy."""

EQUAL_ROWS = 1e-6
"""Rows closer than this share of the batch's typical distance are equal: float32's rounding."""


def confidence(*, logits: Tensor) -> Tensor:
    """Confidence c = 1 - H(softmax(z)) / log K: 0 for a uniform answer, 1 for a certain one.

    Args:
        logits: (B, K).

    Returns:
        (B,), float32 (float64 for float64 logits), in [0, 1].

    Raises:
        ValueError: The logits are not (B, K) with K of at least 2.
    """
    check_logits(logits=logits)
    log_probs = F.log_softmax(full(logits), dim=1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=1)
    return (1 - entropy / math.log(logits.shape[1])).clamp(0, 1)


def discrepancy(*, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Discrepancy d = 1 - cos(z_S, z_t) of the raw logits: 0 where they point the same way.

    A row of zeros has no direction; its cosine counts as 0, so d is 1.

    Args:
        student_logits: (B, K).
        teacher_logits: (B, K).

    Returns:
        (B,), float32 (float64 for float64 logits), in [0, 2].

    Raises:
        ValueError: The shapes differ, or are not (B, K) with K of at least 2.
    """
    check_logits(student_logits=student_logits, teacher_logits=teacher_logits)
    student, teacher = _unit_peak(full(student_logits)), _unit_peak(full(teacher_logits))
    return (1 - F.cosine_similarity(student, teacher, dim=1)).clamp(0, 2)


@torch.no_grad()
def teacher_weights(
    *, student_logits: Tensor, vit_logits: Tensor, cnn_logits: Tensor, centred: bool = False
) -> Tensor:
    """Discrepancy-aware teacher weights ω (DATW): who is confident where the student disagrees.

    Per sample and teacher t: efficacy e_t = c_t · d_t from `confidence` and `discrepancy`;
    ω_t = (e_t + ε) / Σ (e + ε), with ε = `EFFICACY_FLOOR`. Two equal teachers get ½ each, and so
    do two teachers with nothing to teach. The weights carry no gradient.

    The cosine of raw logits, as in the paper, changes where a constant is added to all logits of
    an answer, though the answer's softmax does not: a network whose logits have another mean than
    the student's counts as disagreeing with it. `centred` takes each row's mean off first.

    Args:
        student_logits: (B, K).
        vit_logits: (B, K).
        cnn_logits: (B, K).
        centred: whether d is that of the logits less their means.

    Returns:
        (B, 2) in the order ViT, CNN; rows sum to 1; float32 (float64 for float64 logits).

    Raises:
        ValueError: The shapes differ, or are not (B, K) with K of at least 2.
    """
    check_logits(student_logits=student_logits, vit_logits=vit_logits, cnn_logits=cnn_logits)
    if centred:
        student_logits, vit_logits, cnn_logits = (
            full(logits) - full(logits).mean(dim=1, keepdim=True)
            for logits in (student_logits, vit_logits, cnn_logits)
        )
    efficacies = [
        confidence(logits=teacher_logits)
        * discrepancy(student_logits=student_logits, teacher_logits=teacher_logits)
        for teacher_logits in (vit_logits, cnn_logits)
    ]
    efficacy = torch.stack(efficacies, dim=1) + EFFICACY_FLOOR  # (B, 2)
    return efficacy / efficacy.sum(dim=1, keepdim=True)


def blend_targets(*, weights: Tensor, vit_logits: Tensor, cnn_logits: Tensor) -> Tensor:
    """The blended target z* = ω_V z_V + ω_C z_C.

    Args:
        weights: (B, 2) in the order ViT, CNN, as `teacher_weights` gives them.
        vit_logits: (B, K).
        cnn_logits: (B, K).

    Returns:
        (B, K), float32 (float64 where an input is float64).

    Raises:
        ValueError: The logits' shapes differ, or the weights are not (B, 2).
    """
    check_logits(vit_logits=vit_logits, cnn_logits=cnn_logits)
    expected = (vit_logits.shape[0], 2)
    if tuple(weights.shape) != expected:
        raise ValueError(
            f"weights {tuple(weights.shape)} must be {expected}, one column each for ViT and CNN, "
            f"to go with vit_logits {tuple(vit_logits.shape)}"
        )
    weights = full(weights)
    return weights[:, :1] * full(vit_logits) + weights[:, 1:] * full(cnn_logits)


def kd_loss(*, student_logits: Tensor, target_logits: Tensor, temperature: float) -> Tensor:
    """Distillation loss τ² · KL(softmax(z*/τ) ‖ softmax(z_S/τ)), per sample.

    The factor τ² keeps the gradient's size as the temperature changes (Hinton et al.).

    Args:
        student_logits: (B, K).
        target_logits: (B, K); a constant, no gradient flows into it.
        temperature: τ, positive.

    Returns:
        (B,) in nats · τ²; 0 where both distributions agree.

    Raises:
        ValueError: The shapes differ, are not (B, K) with K of at least 2, or τ is not positive.
    """
    check_logits(student_logits=student_logits, target_logits=target_logits)
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature {temperature} must be a positive number, for example 1.0")
    student_log_probs = F.log_softmax(full(student_logits) / temperature, dim=1)
    target_log_probs = F.log_softmax(full(target_logits.detach()) / temperature, dim=1)
    pointwise = target_log_probs.exp() * (target_log_probs - student_log_probs)
    return temperature**2 * pointwise.sum(dim=1)


def residual_loss(*, predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of the predicted residual, per sample (SDD).

    A cached residual has mean square 1 over the calibration data, so predicting 0 costs about 1,
    and 1 - loss is the branch's R².

    Args:
        predicted: (B, ...), usually (B, D, T', H', W') from the branch.
        target: The same shape; a constant, no gradient flows into it.

    Returns:
        (B,).

    Raises:
        ValueError: The shapes differ, or have no dimension besides the batch.
    """
    if predicted.shape != target.shape or predicted.ndim < 2:
        raise ValueError(
            f"predicted {tuple(predicted.shape)} and target {tuple(target.shape)} must have one "
            "shape (batch, ...): give the branch the channels and grid of the cached residual"
        )
    squared_error = (full(predicted) - full(target.detach())).square()
    return squared_error.flatten(start_dim=1).mean(dim=1)


def rkd_distance_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Distance-wise relational loss: the batch's pairwise distances, student against teacher.

    Distances are divided by the mean of the non-zero distances of their own network, and compared
    by the Huber loss (smooth L1, β = 1), as in Park et al. The mean is over pairs of distinct
    samples, so its size does not depend on the batch's (the authors' code also averages over the
    zeros of the diagonal). Memory: B² · D values.

    Args:
        student: (B, D_S) features.
        teacher: (B, D_T) features; a constant, no gradient flows into it.

    Returns:
        (), 0 for fewer than 3 samples: one normalised distance is always 1.

    Raises:
        ValueError: The inputs are not both (B, features) with one B.
    """
    _check_features(student=student, teacher=teacher)
    batch = student.shape[0]
    if batch < 3:
        return _zero_with_graph(student)
    _, student_distance = _directions_and_distances(full(student))
    _, teacher_distance = _directions_and_distances(full(teacher.detach()))
    student_distance, teacher_distance = _by_mean(student_distance), _by_mean(teacher_distance)
    total = F.smooth_l1_loss(student_distance, teacher_distance, reduction="sum")
    return total / (batch * (batch - 1))


def rkd_angle_loss(*, student: Tensor, teacher: Tensor) -> Tensor:
    """Angle-wise relational loss: the cosine of the angle at j of every triplet (i, j, k).

    Compared by the Huber loss (smooth L1, β = 1), as in Park et al. The mean is over triplets of
    three distinct samples. An angle with a side of length 0 (two rows equal to
    rounding) counts as cosine 0, as in the authors' code, and has no gradient. Memory:
    B² · D + B³ values.

    Args:
        student: (B, D_S) features.
        teacher: (B, D_T) features; a constant, no gradient flows into it.

    Returns:
        (), 0 for fewer than 3 samples.

    Raises:
        ValueError: The inputs are not both (B, features) with one B.
    """
    _check_features(student=student, teacher=teacher)
    batch = student.shape[0]
    if batch < 3:
        return _zero_with_graph(student)
    student_cosine = _cosines_of_angles(full(student))
    teacher_cosine = _cosines_of_angles(full(teacher.detach()))
    huber = F.smooth_l1_loss(student_cosine, teacher_cosine, reduction="none")  # (B, B, B) j, i, k
    # i = j and k = j are 0 on both sides. i = k is no angle: it would cost a pair of equal rows.
    distinct = ~torch.eye(batch, dtype=torch.bool, device=student.device)
    return (huber * distinct).sum() / (batch * (batch - 1) * (batch - 2))


def _cosines_of_angles(features: Tensor) -> Tensor:
    """Cosine of the angle at j between i and k, (B, B, B) in the order j, i, k."""
    directions, _ = _directions_and_distances(features)
    # Autocast would run the product in half precision: three digits of an angle.
    with torch.autocast(device_type=features.device.type, enabled=False):
        return directions @ directions.transpose(1, 2)


def _directions_and_distances(features: Tensor) -> tuple[Tensor, Tensor]:
    """From row j to row i: unit vectors (B, B, D) and distances (B, B), both in the order j, i.

    Rows that are equal up to rounding have direction 0 and distance 0, and no gradient: it would
    be as large as they are close. The differences are formed explicitly: the shorter way over
    inner products loses the distances of close rows to rounding.
    """
    difference = features.unsqueeze(0) - features.unsqueeze(1)
    squared = difference.square().sum(dim=2)
    apart = squared > EQUAL_ROWS**2 * squared.mean()
    distance = torch.where(apart, squared, 1.0).sqrt()  # the slope of sqrt at 0 is infinite
    inverse = apart / distance
    return difference * inverse.unsqueeze(2), distance * apart


def _by_mean(distance: Tensor) -> Tensor:
    """Distances divided by the mean of the non-zero ones; unchanged where all are zero."""
    mean = distance.sum() / (distance > 0).sum().clamp_min(1)
    return distance / torch.where(mean > 0, mean, 1.0)


def _zero_with_graph(features: Tensor) -> Tensor:
    """A 0 that still leads back to the features, so that `backward` works on it alone."""
    return full(features).sum() * 0.0


def _unit_peak(logits: Tensor) -> Tensor:
    """Rows divided by their largest magnitude: no overflow in a norm, the same direction."""
    peak = logits.abs().amax(dim=1, keepdim=True)
    return logits / torch.where(peak > 0, peak, 1.0)


def full(tensor: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def check_logits(**logits: Tensor) -> None:
    """Refuse logits that are not all of one shape (B, K), K of at least 2."""
    shapes = [tuple(tensor.shape) for tensor in logits.values()]
    got = ", ".join(f"{name} {shape}" for name, shape in zip(logits, shapes, strict=True))
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"logits must share one shape (batch, classes); got {got}")
    if shapes[0][1] < 2:
        raise ValueError(
            f"a head with {shapes[0][1]} class(es) has nothing to distil: needs at least 2 "
            f"classes; got {got}"
        )


def _check_features(*, student: Tensor, teacher: Tensor) -> None:
    """Refuse features that are not (B, D_S) and (B, D_T) with one B."""
    if student.ndim != 2 or teacher.ndim != 2 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must both be "
            "(batch, features) of one batch: pool the feature maps first"
        )
