"""Losses against hand-computed values, float64 re-derivations in numpy, and properties."""

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from pipeline.losses import (
    blend_targets,
    confidence,
    discrepancy,
    kd_loss,
    residual_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    teacher_weights,
)

LN3, LN9 = 1.0986122886681098, 2.1972245773362196

Rkd = Callable[..., Tensor]
RKD = pytest.mark.parametrize("rkd", [rkd_distance_loss, rkd_angle_loss])


def random_tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values from a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def softmax64(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Softmax of rows in float64."""
    shifted = np.exp(np.asarray(logits, np.float64) - np.asarray(logits).max(1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


# ---- DATW: confidence, discrepancy, weights, target


def test_confidence_by_hand() -> None:
    # softmax(ln 3, 0) = (3/4, 1/4); H = 0.75·ln(4/3) + 0.25·ln 4
    #   = 0.2157615543 + 0.3465735903 = 0.5623351446; 1 - H / ln 2 = 1 - 0.8112781245
    # softmax(0, ln 9) = (0.1, 0.9); H = 0.1·ln 10 + 0.9·ln(10/9)
    #   = 0.2302585093 + 0.0948244641 = 0.3250829734; 1 - H / ln 2 = 1 - 0.4689955936
    got = confidence(logits=torch.tensor([[LN3, 0.0], [0.0, LN9], [5.0, 5.0]]))
    torch.testing.assert_close(got, torch.tensor([0.1887218755, 0.5310044064, 0.0]))


def test_discrepancy_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    teacher = torch.tensor([[9.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-2.0, -4.0], [1.0, 0.0]])
    # equal directions 0; 45 degrees 1 - 1/sqrt(2); right angle 1; opposite 2; no direction 1
    expected = torch.tensor([0.0, 0.2928932188, 1.0, 2.0, 1.0])
    got = discrepancy(student_logits=student, teacher_logits=teacher)
    torch.testing.assert_close(got, expected, atol=2e-7, rtol=0)


def test_teacher_weights_by_hand() -> None:
    # Both teachers at a right angle to the student (d = 1), with the confidences from above:
    # w_V = 0.1887218755 / (0.1887218755 + 0.5310044064) = 0.2622134; the floor moves the 7th digit
    got = teacher_weights(
        student_logits=torch.tensor([[1.0, 0.0]]),
        vit_logits=torch.tensor([[0.0, -LN3]]),
        cnn_logits=torch.tensor([[0.0, LN9]]),
    )
    torch.testing.assert_close(got, torch.tensor([[0.2622134, 0.7377866]]), atol=2e-6, rtol=0)


def test_teacher_weights_against_numpy() -> None:
    student, vit, cnn = (random_tensor(16, 11, seed=s) * 3 for s in range(3))
    efficacies = []
    for teacher in (vit.double().numpy(), cnn.double().numpy()):
        probs = softmax64(teacher)
        entropy = -(probs * np.log(probs)).sum(axis=1)
        z = student.double().numpy()
        norms = np.linalg.norm(z, axis=1) * np.linalg.norm(teacher, axis=1)
        cosine = (z * teacher).sum(axis=1) / norms
        efficacies.append((1 - entropy / np.log(11)) * (1 - cosine) + 1e-6)
    expected = np.stack(efficacies, axis=1) / np.sum(efficacies, axis=0)[:, None]
    got = teacher_weights(student_logits=student, vit_logits=vit, cnn_logits=cnn)
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-6)
    torch.testing.assert_close(got.sum(dim=1), torch.ones(16))


def test_centred_teacher_weights_do_not_see_a_constant_that_no_answer_shows() -> None:
    student, vit, cnn = (random_tensor(16, 11, seed=s) * 3 for s in range(3))
    shift = 5 * random_tensor(16, 1, seed=3)
    logits = {"student_logits": student, "vit_logits": vit, "cnn_logits": cnn}
    raw, moved = (teacher_weights(**logits | {"cnn_logits": of}) for of in (cnn, cnn + shift))
    assert (raw - moved).abs().max() > 0.1
    centred = [
        teacher_weights(**logits | {"cnn_logits": of}, centred=True) for of in (cnn, cnn + shift)
    ]
    torch.testing.assert_close(*centred)
    by_hand = {name: of - of.mean(dim=1, keepdim=True) for name, of in logits.items()}
    torch.testing.assert_close(centred[0], teacher_weights(**by_hand))


def test_equal_teachers_and_nothing_to_teach_get_half_each() -> None:
    student, teacher = random_tensor(8, 5), random_tensor(8, 5, seed=1)
    half = torch.full((8, 2), 0.5)
    equal = teacher_weights(student_logits=student, vit_logits=teacher, cnn_logits=teacher)
    assert torch.equal(equal, half)
    agreeing = teacher_weights(student_logits=student, vit_logits=student, cnn_logits=3 * student)
    torch.testing.assert_close(agreeing, half, atol=0.1, rtol=0)  # both efficacies are rounding
    flat = torch.zeros(8, 5)
    silent = teacher_weights(student_logits=student, vit_logits=flat, cnn_logits=flat + 7)
    torch.testing.assert_close(silent, half)


def test_a_weight_grows_with_confidence_and_with_disagreement() -> None:
    student = torch.tensor([[1.0, 0.0, 0.0]])
    cnn = torch.tensor([[0.0, 1.0, 0.0]])

    def vit_weight(vit: Tensor) -> float:
        return teacher_weights(student_logits=student, vit_logits=vit, cnn_logits=cnn)[0, 0].item()

    # Longer logits of one direction: the same discrepancy, more confidence.
    by_confidence = [vit_weight(torch.tensor([[0.0, 0.0, size]])) for size in (0.1, 1.0, 2.0, 9.0)]
    assert by_confidence == sorted(by_confidence)
    assert by_confidence[0] < 0.5 < by_confidence[-1]
    # The same probabilities but for their order: the same confidence, more discrepancy.
    agreeing, disagreeing = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 3.0]])
    assert vit_weight(agreeing) < vit_weight(disagreeing)


def test_teacher_weights_carry_no_gradient() -> None:
    logits = [random_tensor(4, 5, seed=s).requires_grad_() for s in range(3)]
    weights = teacher_weights(student_logits=logits[0], vit_logits=logits[1], cnn_logits=logits[2])
    assert not weights.requires_grad


@pytest.mark.parametrize("size", [1e-30, 1e4, 1e30])
def test_extreme_logits_stay_finite(size: float) -> None:
    student, vit, cnn = (random_tensor(6, 4, seed=s) * size for s in range(3))
    weights = teacher_weights(student_logits=student, vit_logits=vit, cnn_logits=cnn)
    assert bool(torch.isfinite(weights).all())
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(6))
    # A cosine does not know the length of its arguments.
    small = discrepancy(student_logits=student / size, teacher_logits=vit / size)
    torch.testing.assert_close(discrepancy(student_logits=student, teacher_logits=vit), small)


def test_blend_targets_by_hand_and_from_float16() -> None:
    # 0.25 · (4, 0) + 0.75 · (0, 8) = (1, 6)
    got = blend_targets(
        weights=torch.tensor([[0.25, 0.75]]),
        vit_logits=torch.tensor([[4.0, 0.0]], dtype=torch.float16),
        cnn_logits=torch.tensor([[0.0, 8.0]], dtype=torch.float16),
    )
    assert got.dtype == torch.float32
    assert got.tolist() == [[1.0, 6.0]]


# ---- KD and SDD


def test_kd_loss_by_hand() -> None:
    # KL((3/4, 1/4) || (1/2, 1/2)) = ln 2 - H = 0.6931471806 - 0.5623351446 = 0.1308120359
    student = torch.zeros(1, 2)
    one = kd_loss(student_logits=student, target_logits=torch.tensor([[LN3, 0.0]]), temperature=1.0)
    torch.testing.assert_close(one, torch.tensor([0.1308120359]))
    # twice the logits at twice the temperature: the same distributions, times 2 squared
    two = kd_loss(
        student_logits=student, target_logits=torch.tensor([[2 * LN3, 0.0]]), temperature=2.0
    )
    torch.testing.assert_close(two, torch.tensor([0.5232481438]))


def test_kd_loss_of_equal_inputs_is_zero() -> None:
    logits = random_tensor(32, 400) * 10
    for shifted in (logits, logits + 3.0):  # softmax does not see a shift
        loss = kd_loss(student_logits=shifted, target_logits=logits, temperature=1.0)
        atol = 1e-7 if shifted is logits else 1e-5
        torch.testing.assert_close(loss, torch.zeros(32), atol=atol, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_loss_against_numpy(temperature: float) -> None:
    student, target = random_tensor(7, 13) * 4, random_tensor(7, 13, seed=1) * 4
    p, q = softmax64(target / temperature), softmax64(student / temperature)
    expected = temperature**2 * (p * (np.log(p) - np.log(q))).sum(axis=1)
    got = kd_loss(student_logits=student, target_logits=target, temperature=temperature)
    np.testing.assert_allclose(got.numpy(), expected, rtol=2e-5)


def test_kd_loss_gradient() -> None:
    student = random_tensor(3, 5, dtype=torch.float64).requires_grad_()
    target = random_tensor(3, 5, seed=1, dtype=torch.float64)
    loss = kd_loss(student_logits=student, target_logits=target, temperature=2.0)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    # d/dz of T²·KL(p || softmax(z / T)) is T·(q - p)
    q, p = torch.softmax(student / 2, dim=1), torch.softmax(target / 2, dim=1)
    torch.testing.assert_close(gradient, 2 * (q - p))


def test_kd_loss_survives_large_logits() -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    target = torch.tensor([[-1e4, 1e4, 0.0]], dtype=torch.float16)
    loss = kd_loss(student_logits=student, target_logits=target, temperature=1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.tolist() == [2e4]  # all of the target's weight where the student's is exp(-2e4)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -1.0, 0.0]]))


def test_residual_loss_by_hand() -> None:
    # sample 0: (1² + 2²) / 2 = 2.5; sample 1: 0
    predicted = torch.tensor([[[1.0], [2.0]], [[3.0], [3.0]]])
    target = torch.tensor([[[0.0], [0.0]], [[3.0], [3.0]]], dtype=torch.float16)
    loss = residual_loss(predicted=predicted, target=target)
    assert loss.dtype == torch.float32
    assert loss.tolist() == [2.5, 0.0]


def test_targets_and_teachers_are_constants() -> None:
    a, b = random_tensor(4, 5), random_tensor(4, 5, seed=1).requires_grad_()
    assert not kd_loss(student_logits=a, target_logits=b, temperature=1.0).requires_grad
    assert not residual_loss(predicted=a, target=b).requires_grad
    assert not rkd_distance_loss(student=a, teacher=b).requires_grad
    assert not rkd_angle_loss(student=a, teacher=b).requires_grad


# ---- RKD


def huber64(difference: float) -> float:
    """Smooth L1 with its knee at 1."""
    size = abs(difference)
    return 0.5 * size**2 if size < 1 else size - 0.5


def distance_loss64(student: Tensor, teacher: Tensor) -> float:
    """The distance loss as a double loop over pairs of distinct samples."""
    pairs = list(itertools.combinations(range(len(student)), 2))
    tables = []
    for features in (student.double().numpy(), teacher.double().numpy()):
        lengths = [float(np.linalg.norm(features[i] - features[j])) for i, j in pairs]
        mean = float(np.mean([length for length in lengths if length > 0]))
        tables.append([length / mean for length in lengths])
    return float(np.mean([huber64(s - t) for s, t in zip(*tables, strict=True)]))


def angle_loss64(student: Tensor, teacher: Tensor) -> float:
    """The angle loss as a triple loop over triplets of distinct samples."""

    def cosine(features: npt.NDArray[np.float64], i: int, j: int, k: int) -> float:
        a, b = features[i] - features[j], features[k] - features[j]
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / lengths if lengths > 0 else 0.0

    s, t = student.double().numpy(), teacher.double().numpy()
    triplets = itertools.permutations(range(len(s)), 3)
    return float(np.mean([huber64(cosine(s, *ijk) - cosine(t, *ijk)) for ijk in triplets]))


def test_rkd_distance_by_hand() -> None:
    # student 0, 1, 3: distances 1, 2, 3 over their mean 2: 1/2, 1, 3/2
    # teacher 0, 1, 2: distances 1, 1, 2 over their mean 4/3: 3/4, 3/4, 3/2
    # Huber of 1/4, 1/4, 0: 1/32, 1/32, 0; mean 1/48
    loss = rkd_distance_loss(
        student=torch.tensor([[0.0], [1.0], [3.0]]), teacher=torch.tensor([[0.0], [1.0], [2.0]])
    )
    assert loss.item() == pytest.approx(1 / 48, rel=1e-6)


def test_rkd_angle_by_hand() -> None:
    # student: angles 90, 45, 45 degrees, cosines 0, 0.7071068, 0.7071068
    # teacher: equilateral, cosines 1/2; Huber of 0.5, 0.2071068 twice:
    # 0.125 + 2 · 0.0214466 = 0.1678932; mean over 3 = 0.0559644
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    teacher = torch.eye(3)
    loss = rkd_angle_loss(student=student, teacher=teacher)
    assert loss.item() == pytest.approx(0.0559644, abs=1e-6)


@pytest.mark.parametrize("duplicates", [False, True])
def test_rkd_against_direct_loops(duplicates: bool) -> None:
    student, teacher = random_tensor(7, 4), random_tensor(7, 9, seed=1) * 5
    if duplicates:
        student[3] = student[1]
        teacher[5] = teacher[0]
    distance = rkd_distance_loss(student=student, teacher=teacher)
    assert distance.item() == pytest.approx(distance_loss64(student, teacher), rel=1e-5)
    angle = rkd_angle_loss(student=student, teacher=teacher)
    assert angle.item() == pytest.approx(angle_loss64(student, teacher), rel=1e-5)


@RKD
def test_rkd_ignores_scale_rotation_and_translation(rkd: Rkd) -> None:
    teacher = random_tensor(6, 5, dtype=torch.float64)
    rotation = torch.linalg.qr(random_tensor(5, 5, seed=1, dtype=torch.float64)).Q
    student = 3 * teacher @ rotation + 2
    assert rkd(student=student, teacher=teacher).item() == pytest.approx(0, abs=1e-12)
    assert rkd(student=student[:, :2], teacher=teacher).item() > 1e-3


@RKD
def test_rkd_gradient(rkd: Rkd) -> None:
    student = random_tensor(5, 3, dtype=torch.float64).requires_grad_()
    teacher = random_tensor(5, 4, seed=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: rkd(student=s, teacher=teacher), (student,))


@RKD
@pytest.mark.parametrize("case", ["pair", "all", "close"])
def test_rkd_gradients_are_finite_and_moderate_for_duplicate_rows(rkd: Rkd, case: str) -> None:
    student = random_tensor(6, 4)
    student[2] = student[4]
    if case == "all":
        student = student[:1].repeat(6, 1)
    if case == "close":
        student[2] += 1e-7  # the last digit of float32
        assert not torch.equal(student[2], student[4])

    def gradient(features: Tensor) -> Tensor:
        features.requires_grad_()
        loss = rkd(student=features, teacher=random_tensor(6, 8, seed=1))
        return torch.autograd.grad(loss, features)[0]

    once, larger = gradient(student), gradient(student.detach() * 1024)
    assert bool(torch.isfinite(once).all())
    assert once.abs().max().item() < 10
    # The loss does not see the scale, so its slope falls with it; equal rows add none of their own.
    torch.testing.assert_close(larger * 1024, once, atol=1e-5, rtol=1e-4)


@RKD
@pytest.mark.parametrize("batch", [1, 2])
def test_rkd_of_one_or_two_samples_is_a_zero_with_a_graph(rkd: Rkd, batch: int) -> None:
    student = torch.full((batch, 4), 6e4, dtype=torch.float16, requires_grad=True)
    loss = rkd(student=student, teacher=random_tensor(batch, 8))
    assert loss.shape == ()
    assert loss.item() == 0
    (gradient,) = torch.autograd.grad(loss, student)
    assert gradient.abs().sum().item() == 0


@RKD
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rkd_computes_half_precision_in_float32(rkd: Rkd, dtype: torch.dtype) -> None:
    student = (random_tensor(6, 64) * 100).to(dtype)
    teacher = (random_tensor(6, 32, seed=1) * 100).to(dtype)
    expected = rkd(student=student.double(), teacher=teacher.double()).item()
    with torch.autocast(device_type="cpu", dtype=torch.bfloat16):
        loss = rkd(student=student, teacher=teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4)


# ---- Bad input


def test_different_shapes_are_refused_by_name() -> None:
    four, five = torch.zeros(2, 4), torch.zeros(2, 5)
    with pytest.raises(ValueError, match=r"student_logits \(2, 4\), target_logits \(2, 5\)"):
        kd_loss(student_logits=four, target_logits=five, temperature=1.0)
    with pytest.raises(ValueError, match=r"\(2, 4\), vit_logits \(2, 4\), cnn_logits \(2, 5\)"):
        teacher_weights(student_logits=four, vit_logits=four, cnn_logits=five)
    with pytest.raises(ValueError, match=r"student_logits \(2, 4\), teacher_logits \(2, 5\)"):
        discrepancy(student_logits=four, teacher_logits=five)
    with pytest.raises(ValueError, match=r"one shape \(batch, classes\); got logits \(4,\)"):
        confidence(logits=torch.zeros(4))
    with pytest.raises(ValueError, match=r"weights \(2, 4\) must be \(2, 2\).*vit_logits \(2, 4\)"):
        blend_targets(weights=four, vit_logits=four, cnn_logits=four)
    with pytest.raises(ValueError, match=r"predicted \(2, 4\) and target \(2, 5\)"):
        residual_loss(predicted=four, target=five)


@RKD
def test_rkd_refuses_maps_and_different_batches(rkd: Rkd) -> None:
    with pytest.raises(ValueError, match=r"student \(2, 4\) and teacher \(3, 4\).*one batch"):
        rkd(student=torch.zeros(2, 4), teacher=torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"student \(2, 4, 1\).*pool the feature maps"):
        rkd(student=torch.zeros(2, 4, 1), teacher=torch.zeros(2, 4))


def test_one_class_is_refused() -> None:
    one = torch.zeros(3, 1)
    with pytest.raises(ValueError, match=r"1 class\(es\).*at least 2 classes; got logits \(3, 1\)"):
        confidence(logits=one)
    with pytest.raises(ValueError, match="at least 2 classes"):
        teacher_weights(student_logits=one, vit_logits=one, cnn_logits=one)
    with pytest.raises(ValueError, match="at least 2 classes"):
        kd_loss(student_logits=one, target_logits=one, temperature=1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=rf"temperature {temperature} must be a positive number"):
        kd_loss(student_logits=logits, target_logits=logits, temperature=temperature)
