"""What the method is compared with: each against numpy in float64, or a closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config_training import Weights
from pipeline.learner import Answer, LearnedResidual, Sizes, make_learner
from pipeline.losses import kd_loss, teacher_weights
from pipeline.objective import Batch, Method, TrainingError, loss_terms
from pipeline.reference_losses import dkd_loss, entropy_weights, mimicry_loss
from training_making import HEADS, make_batch, make_network

Array = NDArray[np.float64]
NOTHING = {"kd": 0.0, "sdd": 0.0, "rkd": 0.0}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(logits: Array) -> Array:
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def kl(p: Array, q: Array) -> float:
    return float((p * np.log(p / q)).sum())


def test_entropy_weights_by_hand() -> None:
    vit, cnn = normal(6, 5), normal(6, 5, seed=1)
    found = entropy_weights(vit_logits=vit, cnn_logits=cnn)
    for row in range(6):
        p, q = (softmax(logits[row].double().numpy()) for logits in (vit, cnn))
        h_vit, h_cnn = (-(x * np.log(x)).sum() / np.log(5) + 1e-6 for x in (p, q))
        assert found[row, 0].item() == pytest.approx(h_cnn / (h_vit + h_cnn), abs=1e-5)
    np.testing.assert_allclose(found.sum(dim=1), 1, atol=1e-6)


def test_dkd_by_hand() -> None:
    """The paper's formula: KL of (label, rest), and β times KL among the rest."""
    student, target, labels = normal(4, 5), normal(4, 5, seed=1), torch.tensor([0, 4, 2, -100])
    found = dkd_loss(
        student_logits=student, target_logits=target, labels=labels, temperature=2.0, beta=3.0
    )
    for row in range(3):
        label = int(labels[row])
        q, p = (softmax(logits[row].double().numpy() / 2) for logits in (student, target))
        tckd = kl(np.array([p[label], 1 - p[label]]), np.array([q[label], 1 - q[label]]))
        rest_p, rest_q = np.delete(p, label), np.delete(q, label)
        nckd = kl(rest_p / rest_p.sum(), rest_q / rest_q.sum())
        assert found[row].item() == pytest.approx(4 * (tckd + 3 * nckd), rel=1e-5)
    assert found[3] == 0


def test_dkd_with_beta_of_the_other_classes_share_is_kd() -> None:
    student, target, labels = normal(5, 7), normal(5, 7, seed=1), torch.arange(5)
    for row in range(5):
        one = {"student_logits": student[row : row + 1], "target_logits": target[row : row + 1]}
        share = 1 - torch.softmax(target[row] / 1.5, dim=0)[row].item()
        found = dkd_loss(**one, labels=labels[row : row + 1], temperature=1.5, beta=share)
        torch.testing.assert_close(found, kd_loss(**one, temperature=1.5), rtol=1e-4, atol=1e-6)


def test_dkd_has_finite_gradients_where_a_class_is_nearly_certain() -> None:
    student = torch.tensor([[80.0, -80.0, 0.0]], requires_grad=True)
    target = torch.tensor([[-90.0, 90.0, 0.0]])
    loss = dkd_loss(
        student_logits=student,
        target_logits=target,
        labels=torch.tensor([1]),
        temperature=1.0,
        beta=8.0,
    )
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss).all()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_mimicry_by_hand() -> None:
    predicted, target = normal(4, 3), normal(4, 3, seed=1)
    x, y = predicted.double().numpy(), target.double().numpy()
    spread = ((y - y.mean(axis=0)) ** 2).mean()
    expected = ((x - y) ** 2).mean(axis=1) / spread
    np.testing.assert_allclose(
        mimicry_loss(predicted=predicted, target=target), expected, rtol=1e-5
    )
    mean = target.mean(dim=0).expand(4, 3)
    assert mimicry_loss(predicted=mean, target=target).mean().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("loss", ["dkd", "mimicry", "entropy"])
def test_shapes_that_do_not_fit_are_named(loss: str) -> None:
    one, other = normal(4, 5), normal(4, 6)
    calls: dict[str, Any] = {
        "dkd": lambda: dkd_loss(
            student_logits=one,
            target_logits=other,
            labels=torch.zeros(4),
            temperature=1.0,
            beta=1.0,
        ),
        "mimicry": lambda: mimicry_loss(predicted=one, target=other),
        "entropy": lambda: entropy_weights(vit_logits=one, cnn_logits=other),
    }
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(4, 6\)"):
        calls[loss]()


# ---- their place in the loss


def terms_of(weights: dict[str, float], **method: Any) -> tuple[dict[str, Tensor], Any, Batch]:
    """The terms of a step of a small network, and what it saw."""
    model, _ = make_network()
    batch, chosen = make_batch(5), Weights(**(NOTHING | weights))
    assert batch.teachers is not None
    cnn_pooled = normal(5, 11, seed=3)
    sizes = Sizes(vit_pooled=7, cnn_pooled=11, residual=(6, 4, 2, 2))
    learner = make_learner(model, chosen, sizes).eval()
    assert batch.teachers.vit_pooled is not None
    answer = learner(batch.clips, None, (batch.teachers.vit_pooled, cnn_pooled))
    terms, led = loss_terms(answer, batch, Method(chosen, **method))
    return terms, (answer, led, learner), batch


@pytest.mark.parametrize("weighting", ["datw", "datw_centred", "uniform", "entropy", "vit", "cnn"])
def test_each_weighting_has_its_target(weighting: Any) -> None:
    terms, (answer, led, _), batch = terms_of({"kd": 1.0}, weighting=weighting, temperature=2.0)
    losses = []
    for head in HEADS:
        student = answer.student.logits[head]
        assert batch.teachers is not None
        vit, cnn = batch.teachers.vit_logits[head], batch.teachers.cnn_logits[head]
        assert vit is not None
        assert cnn is not None
        raw = {"student_logits": student, "vit_logits": vit, "cnn_logits": cnn}
        weights = {
            "datw": teacher_weights(**raw),
            "datw_centred": teacher_weights(
                **{name: logits - logits.mean(dim=1, keepdim=True) for name, logits in raw.items()}
            ),
            "entropy": entropy_weights(vit_logits=vit, cnn_logits=cnn),
            "uniform": torch.tensor([[0.5, 0.5]]),
            "vit": torch.tensor([[1.0, 0.0]]),
            "cnn": torch.tensor([[0.0, 1.0]]),
        }[weighting]
        target = weights[:, :1] * vit + weights[:, 1:] * cnn
        losses.append(kd_loss(student_logits=student, target_logits=target, temperature=2.0).mean())
    assert terms["kd"].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert (led is None) == (weighting in ("vit", "cnn"))


def test_a_weighting_by_one_teacher_reads_only_its_logits() -> None:
    one = Method(Weights(kd=1.0, sdd=0.0, rkd=0.0), weighting="cnn")
    assert (one.vit_logits, one.cnn_logits) == (False, True)
    none = Method(Weights(kd=0.0, sdd=0.0, rkd=0.1), weighting="vit")
    assert (none.vit_logits, none.cnn_logits) == (False, False)


def test_the_parts_of_a_learner_are_those_of_its_terms() -> None:
    for name in ("sdd", "mimic", "learned_sdd"):
        terms, (answer, _, learner), _ = terms_of({name: 1.0})
        assert set(terms) == {"ce", name}
        assert set(learner.parts) == set(answer.predicted) == {name}
    _, (_, _, learner), _ = terms_of({"kd": 1.0, "dkd": 1.0, "rkd": 1.0})
    assert not list(learner.parts)


def test_a_learned_residual_has_gradients_into_phi() -> None:
    terms, (_, _, learner), _ = terms_of({"learned_sdd": 1.0})
    terms["learned_sdd"].backward()  # type: ignore[no-untyped-call]
    part = learner.parts["learned_sdd"]
    assert isinstance(part, LearnedResidual)
    for module in (part.vit, part.cnn, part.branch.predict):
        assert module.weight.grad is not None
        assert module.weight.grad.abs().max() > 0


def test_a_missing_part_is_named() -> None:
    model_answer = terms_of({"kd": 1.0})[1][0].student
    for name, said in (("mimic", "predicts the ViT's features"), ("learned_sdd", "learned φ")):
        method = Method(Weights(**(NOTHING | {name: 1.0})))
        with pytest.raises(TrainingError, match=said):
            loss_terms(Answer(model_answer, {}), make_batch(5), method)
