"""The step and the loop: losses re-derived in float64, the schedule, seeds, and what is refused."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.branch import StructureDiscrepancyBranch
from pipeline.config_training import Weights
from pipeline.learner import Answer
from pipeline.models import Features, VideoModel, create_model
from pipeline.objective import (
    LABELS_ONLY,
    Batch,
    Method,
    TeacherRows,
    TrainingError,
    loss_terms,
    total_loss,
)
from pipeline.optimising import make_optimiser, start_training
from pipeline.totals import Totals
from pipeline.training import (
    EpochLog,
    epoch_batches,
    predict,
    steps_in_epoch,
    train,
    train_step,
)
from training_making import (
    ALL,
    HEADS,
    NANO,
    RESIDUAL,
    learner_of,
    make_batch,
    make_network,
    make_recipe,
)

Array = NDArray[np.float64]


def part(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch, without cached ones."""
    labels = {head: labels[rows] for head, labels in batch.labels.items()}
    return Batch(batch.names[rows], batch.clips[rows], labels)


def make_answer(count: int = 5, seed: int = 2) -> Features:
    """Random outputs of a student; its map has the shape of the residual."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator).requires_grad_()

    return Features({head: normal(k) for head, k in HEADS.items()}, normal(9), normal(*RESIDUAL))


# ---- the formulas of the method, in numpy and float64, one sample at a time


def softmax(logits: Array) -> Array:
    return np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()


def vit_weight(student: Array, vit: Array, cnn: Array) -> float:
    """ω of the ViT for one sample: confidence times discrepancy, as a share of both."""
    efficacies = []
    for teacher in (vit, cnn):
        p = softmax(teacher)
        confidence = 1 + (p * np.log(p)).sum() / np.log(len(p))
        cosine = student @ teacher / np.linalg.norm(student) / np.linalg.norm(teacher)
        efficacies.append(confidence * (1 - cosine) + 1e-6)
    return float(efficacies[0] / sum(efficacies))


def distillation(student: Array, vit: Array, cnn: Array, temperature: float) -> float:
    """τ² · KL of one sample, from the blended target."""
    weight = vit_weight(student, vit, cnn)
    p = softmax((weight * vit + (1 - weight) * cnn) / temperature)
    q = softmax(student / temperature)
    return float(temperature**2 * (p * np.log(p / q)).sum())


def huber(difference: float) -> float:
    size = abs(difference)
    return 0.5 * size**2 if size < 1 else size - 0.5


def relations(student: Array, teacher: Array) -> float:
    """Distance-wise plus twice angle-wise loss, over all pairs and triplets."""
    rows = range(len(student))

    def distances(x: Array) -> Array:
        apart = np.array([[np.linalg.norm(a - b) for a in x] for b in x])
        return np.asarray(apart / apart[apart > 0].mean())

    def cosine(x: Array, i: int, j: int, k: int) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    d_s, d_t = distances(student), distances(teacher)
    pairs = [huber(d_s[i, j] - d_t[i, j]) for i, j in itertools.permutations(rows, 2)]
    triplets = [
        huber(cosine(student, i, j, k) - cosine(teacher, i, j, k))
        for i, j, k in itertools.permutations(rows, 3)
    ]
    return float(np.mean(pairs) + 2 * np.mean(triplets))


def terms_by_hand(
    answer: Features, predicted: Tensor, batch: Batch, temperature: float
) -> dict[str, float]:
    """All terms of the loss."""

    def array(tensor: Tensor | None) -> Array:
        assert tensor is not None
        return tensor.detach().double().numpy()

    assert batch.teachers is not None
    cross_entropy, kd = [], []
    for head, labels in batch.labels.items():
        student = array(answer.logits[head])
        vit, cnn = (
            array(logits[head]) for logits in (batch.teachers.vit_logits, batch.teachers.cnn_logits)
        )
        rows = range(len(student))
        cross_entropy.append(np.mean([-np.log(softmax(student[b])[labels[b]]) for b in rows]))
        kd.append(np.mean([distillation(student[b], vit[b], cnn[b], temperature) for b in rows]))
    return {
        "ce": float(np.mean(cross_entropy)),
        "kd": float(np.mean(kd)),
        "sdd": float(((array(predicted) - array(batch.teachers.residual)) ** 2).mean()),
        "rkd": relations(array(answer.pooled), array(batch.teachers.vit_pooled)),
    }


# ---- the terms of the loss


def test_every_term_and_their_sum_against_numpy() -> None:
    answer, batch = make_answer(), make_batch(5)
    predicted = Answer(answer, {"sdd": answer.map})
    terms, weights = loss_terms(predicted, batch, Method(ALL, temperature=2.0))
    expected = terms_by_hand(answer, answer.map, batch, 2.0)
    got = {name: term.item() for name, term in terms.items()}
    assert got == pytest.approx(expected, rel=1e-5)
    total = expected["ce"] + 0.7 * expected["kd"] + 0.3 * expected["sdd"] + 0.2 * expected["rkd"]
    assert total_loss(terms, ALL).item() == pytest.approx(total, rel=1e-5)
    # The weights that come back are those of the first head.
    assert batch.teachers is not None
    assert weights is not None
    vit, cnn = batch.teachers.vit_logits["verb"], batch.teachers.cnn_logits["verb"]
    three = [logits.detach().double().numpy() for logits in (answer.logits["verb"], vit, cnn)]  # type: ignore[union-attr]
    by_hand = [vit_weight(*rows) for rows in zip(*three, strict=True)]
    np.testing.assert_allclose(weights[:, 0].numpy(), by_hand, atol=1e-5)
    np.testing.assert_allclose(weights.sum(dim=1).numpy(), 1, atol=1e-6)


def test_a_whole_step_against_numpy() -> None:
    model, branch = make_network()
    batch, method = make_batch(), Method(ALL, temperature=1.5)
    inputs = (batch.clips.permute(0, 4, 1, 2, 3).float() / 255 - 0.45) / 0.225
    predicted = copy.deepcopy(branch)(copy.deepcopy(model).train().features(inputs).map)
    learner = learner_of(model, branch)
    optimiser = make_optimiser(learner, make_recipe())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (outcome,) = train_step(learner.train(), batch, method, optimiser, 1.0)
    expected = terms_by_hand(outcome.answer.student, predicted, batch, 1.5)
    total = expected["ce"] + 0.7 * expected["kd"] + 0.3 * expected["sdd"] + 0.2 * expected["rkd"]
    got = {name: term.item() for name, term in outcome.terms.items()}
    assert got == pytest.approx({"loss": total, **expected}, rel=2e-4)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {"net.blocks.0.conv.conv_t.weight", "net.blocks.5.proj.weight"} <= moved


def test_label_smoothing_by_hand() -> None:
    # softmax(0, ln 3) = (1/4, 3/4); the label 1 smoothed by 0.2 over 2 classes is (0.1, 0.9):
    # CE = 0.1·ln 4 + 0.9·ln(4/3) = 0.1386294361 + 0.2589138652
    logits = torch.tensor([[0.0, math.log(3)]])
    answer = Features({"action": logits}, torch.zeros(1, 2), torch.zeros(1, 2, 1, 1, 1))
    batch = Batch(["one"], torch.zeros(1), {"action": torch.tensor([1])})
    method = Method(LABELS_ONLY, label_smoothing=0.2)
    terms, weights = loss_terms(Answer(answer, {}), batch, method)
    assert terms["ce"].item() == pytest.approx(0.3975433013, abs=1e-6)
    terms, _ = loss_terms(Answer(answer, {}), batch, Method(LABELS_ONLY))
    assert terms["ce"].item() == pytest.approx(math.log(4 / 3), abs=1e-6)
    assert weights is None


def only(**given: Any) -> TeacherRows:
    """Cached rows of which only the named ones are there."""
    nothing = dict.fromkeys(HEADS)
    rows = {"vit_logits": nothing, "cnn_logits": nothing, "vit_pooled": None, "residual": None}
    return TeacherRows(**(rows | given))


def test_a_term_of_weight_0_is_not_computed() -> None:
    answer, batch = make_answer(), make_batch(5)
    full = batch.teachers
    assert full is not None
    logits = {"vit_logits": full.vit_logits, "cnn_logits": full.cnn_logits}
    cases: list[tuple[dict[str, float], TeacherRows | None, set[str]]] = [
        ({}, None, {"ce"}),
        ({}, only(), {"ce"}),
        ({}, full, {"ce"}),
        ({"kd": 1.0}, only(**logits), {"ce", "kd"}),
        ({"sdd": 1.0}, only(residual=full.residual), {"ce", "sdd"}),
        ({"rkd": 1.0}, only(vit_pooled=full.vit_pooled), {"ce", "rkd"}),
        ({"sdd": 1.0, "rkd": 1.0}, full, {"ce", "sdd", "rkd"}),
    ]
    for weights, teachers, expected in cases:
        method = Method(Weights(**({"kd": 0.0, "sdd": 0.0, "rkd": 0.0} | weights)))
        predicted = Answer(answer, {"sdd": answer.map} if "sdd" in weights else {})
        given = Batch(batch.names, batch.clips, batch.labels, teachers)
        terms, led = loss_terms(predicted, given, method)
        assert set(terms) == expected
        assert (led is not None) == ("kd" in weights)


def test_a_weight_of_nearly_0_trains_as_a_weight_of_0() -> None:
    gradients = []
    for size in (0.0, 1e-9):
        model, branch = make_network()
        batch, weights = make_batch(), Weights(kd=size, sdd=size, rkd=size)
        answer = learner_of(model, branch).train()(batch.clips)
        terms, _ = loss_terms(answer, batch, Method(weights))
        total_loss(terms, weights).backward()  # type: ignore[no-untyped-call]
        parameters = [p.grad for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat([gradient.flatten() for gradient in parameters]))
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("weights", "needed"),
    [((0, 0, 0), False), ((0.1, 0, 0), True), ((0, 0.1, 0), True), ((0, 0, 1e-9), True)],
)
def test_teachers_are_needed_where_a_weight_is_above_0(
    weights: tuple[float, float, float], needed: bool
) -> None:
    method = Method(Weights(**dict(zip(("kd", "sdd", "rkd"), weights, strict=True))))
    assert method.needs_teachers is needed


def test_a_missing_input_of_a_term_is_named() -> None:
    answer, batch = make_answer(), make_batch(5)
    full = batch.teachers
    assert full is not None
    vit, cnn = full.vit_logits, full.cnn_logits
    cases: list[tuple[str, TeacherRows | None, bool, str]] = [
        ("kd", None, True, "cached rows"),
        ("sdd", None, True, "cached rows"),
        ("kd", only(cnn_logits=cnn), True, "vit/logits/verb"),
        ("kd", only(vit_logits=vit, cnn_logits=cnn | {"noun": None}), True, "cnn/logits/noun"),
        ("kd", only(vit_logits={}, cnn_logits=cnn), True, "vit/logits/verb"),
        ("sdd", only(), True, "residual"),
        ("sdd", full, False, "structure discrepancy branch"),
        ("rkd", only(), True, "vit/pooled"),
    ]
    for term, teachers, has_branch, named in cases:
        method = Method(Weights(**({"kd": 0.0, "sdd": 0.0, "rkd": 0.0} | {term: 1.0})))
        given = Batch(batch.names, batch.clips, batch.labels, teachers)
        with pytest.raises(TrainingError, match=named):
            loss_terms(Answer(answer, {"sdd": answer.map} if has_branch else {}), given, method)


# ---- the step


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_names_the_samples_and_changes_nothing(what: str) -> None:
    model, _ = make_network()
    bias = model.net.blocks[-1].proj.bias
    if what == "loss":
        bias.data[0] = torch.nan
    else:
        bias.register_hook(lambda gradient: gradient * torch.inf)
    learner = learner_of(model)
    optimiser = make_optimiser(learner, make_recipe())
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TrainingError, match=f"the {what} is not finite .*clip-0, clip-1, clip-2"):
        train_step(learner, make_batch(3), Method(LABELS_ONLY), optimiser, 1.0)
    after = list(model.parameters())
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(after, before, strict=True)
    )


def test_the_gradient_of_model_and_branch_together_is_clipped() -> None:
    model, branch = make_network()
    optimiser = torch.optim.SGD([*model.parameters(), *branch.parameters()], lr=1e-3)
    learner = learner_of(model, branch)
    train_step(learner, make_batch(), Method(ALL), optimiser, clip_norm=0.01)
    parameters = [*model.parameters(), *branch.parameters()]
    squares = [p.grad.double().square().sum() for p in parameters if p.grad is not None]
    assert torch.stack(squares).sum().sqrt().item() == pytest.approx(0.01, rel=1e-3)


# ---- the order of an epoch


@pytest.mark.parametrize(("rows", "size"), [(600, 32), (10, 4), (8, 4), (9, 8), (5, 7), (1, 2)])
def test_an_epoch_holds_every_row_once_in_even_batches(rows: int, size: int) -> None:
    batches = epoch_batches(rows=rows, batch_size=size, seed=0, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(rows))
    lengths = [len(batch) for batch in batches]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert len(batches) == steps_in_epoch(rows, size) == math.ceil(rows / size)


def test_an_epoch_is_decided_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        batches = epoch_batches(rows=50, batch_size=8, seed=seed, epoch=epoch)
        return tuple(int(row) for row in np.concatenate(batches))

    assert order(3, 4) == order(3, 4)
    orders = {order(seed, epoch) for seed in range(3) for epoch in range(5)}
    assert len(orders) == 15
    assert tuple(range(50)) not in orders


# ---- the loop


def run(
    model: VideoModel,
    branch: nn.Module | None,
    batches: list[Batch],
    method: Method,
    **changes: Any,
) -> list[EpochLog]:
    """Train on the same batches in every epoch."""
    recipe = make_recipe(**changes)
    training = start_training(learner_of(model, branch), recipe, len(batches))
    return list(train(training, recipe=recipe, method=method, batches=lambda *_: batches))


def state_bytes(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


def test_two_runs_of_one_seed_give_the_same_bits() -> None:
    def trained(seed: int) -> tuple[dict[str, bytes], dict[str, bytes], list[dict[str, float]]]:
        torch.manual_seed(seed)
        model = create_model(NANO, HEADS, dropout=0.3)  # dropout draws random numbers too
        branch = StructureDiscrepancyBranch(model.map_channels, RESIDUAL[0], RESIDUAL[1:], 8)
        logs = run(model, branch, [make_batch(4, 1), make_batch(4, 2)], Method(ALL))
        records = [dict(log.record) for log in logs]
        for record in records:
            del record["clips_per_sec"], record["waited"]
        return state_bytes(model), state_bytes(branch), records

    first, again, other = trained(0), trained(0), trained(1)
    assert first == again
    assert first[0] != other[0]


def test_training_learns_eight_clips_by_heart() -> None:
    model, _ = make_network()
    batch = make_batch(8)
    batches = [part(batch, slice(4)), part(batch, slice(4, 8))]
    logs = run(model, None, batches, Method(LABELS_ONLY), epochs=12, learning_rate=1e-2)
    assert logs[0].record["ce"] > 1.0  # guessing: (ln 5 + ln 3) / 2 = 1.35
    assert logs[-1].record["ce"] < 0.1
    assert logs[-1].record["accuracy/verb"] == logs[-1].record["accuracy/noun"] == 1.0
    assert logs[-1].record["accuracy/action"] == 1.0  # both


def test_training_makes_every_term_fall() -> None:
    model, branch = make_network()
    logs = run(model, branch, [make_batch()], Method(ALL), epochs=12, learning_rate=2e-2)
    for term in ("loss", "ce", "kd", "sdd", "rkd"):
        assert logs[-1].record[term] < 0.95 * logs[0].record[term], term
    assert logs[-1].record["learning_rate"] < 1e-8


def test_the_record_of_an_epoch_by_hand() -> None:
    """Means over clips, not over batches; here the batches hold 4 clips and 2."""
    model, branch = make_network()
    batches = [make_batch(4, 1), make_batch(2, 2)]
    method = Method(Weights(kd=0.5, sdd=0.0, rkd=0.0))
    answers = []
    for batch in batches:  # at a rate of nearly 0 the network stays as it is
        twin = copy.deepcopy(model).to(memory_format=torch.channels_last_3d)
        optimiser = torch.optim.SGD(twin.parameters(), lr=0.0)
        answers += train_step(learner_of(twin).train(), batch, method, optimiser, 1.0)
    (log,) = run(model, branch, batches, method, epochs=1, learning_rate=1e-12)
    record = log.record
    for term in ("loss", "ce", "kd"):
        mean = sum(one.terms[term].item() * n for one, n in zip(answers, (4, 2), strict=True))
        assert record[term] == pytest.approx(mean / 6, rel=1e-4)
    for head in HEADS:
        hits = [
            int(one.answer.student.logits[head][row].argmax()) == int(one.batch.labels[head][row])
            for one in answers
            for row in range(len(one.batch.names))
        ]
        assert record[f"accuracy/{head}"] == pytest.approx(sum(hits) / 6)
    vit = [float(weight) for one in answers for weight in one.weights[:, 0]]  # type: ignore[index]
    assert record["vit_weight"] == pytest.approx(np.mean(vit), rel=1e-4)
    assert record["vit_weight_spread"] == pytest.approx(np.std(vit), rel=1e-4)
    for teacher in ("vit", "cnn"):
        for head in HEADS:
            agreed = [
                int(one.answer.student.logits[head][row].argmax())
                == int(getattr(one.batch.teachers, f"{teacher}_logits")[head][row].argmax())
                for one in answers
                for row in range(len(one.batch.names))
            ]
            assert record[f"agreement_{teacher}/{head}"] == pytest.approx(np.mean(agreed))
    assert record["cnn_leads"] == pytest.approx(np.mean([weight < 0.5 for weight in vit]))
    assert record["vit_leads"] == pytest.approx(np.mean([weight > 0.5 for weight in vit]))
    # Verbs 0 1 2 3 and 0 1: two classes seen twice, two once, the last never.
    by_class = [(vit[0] + vit[4]) / 2, (vit[1] + vit[5]) / 2, vit[2], vit[3], math.nan]
    assert log.vit_weight_by_class == pytest.approx(by_class, rel=1e-4, nan_ok=True)
    check_by_confidence(log.vit_weight_by_confidence, [one.batch for one in answers], vit)
    assert "sdd" not in record
    assert record["clips_per_sec"] > 0


def test_an_epoch_that_goes_on_from_its_state_has_the_same_totals() -> None:
    learner = learner_of(*make_network())
    outcomes = [
        outcome
        for seed in (1, 2)
        for outcome in train_step(
            learner, make_batch(4, seed), Method(ALL), torch.optim.SGD(learner.parameters()), 1.0
        )
    ]
    whole, half = Totals(5), Totals(5)
    for outcome in outcomes:
        whole.add(outcome)
    half.add(outcomes[0])
    resumed = Totals.from_state(5, json.loads(json.dumps(half.state())), torch.device("cpu"))
    resumed.add(outcomes[1])
    assert resumed.state() == whole.state()
    assert str(resumed.vit_weight_by_confidence()) == str(whole.vit_weight_by_confidence())


def check_by_confidence(found: list[list[float]], batches: list[Batch], vit: list[float]) -> None:
    """Fifths of 1 - H / log K of both teachers, by numpy, a clip at a time."""

    def fifth(logits: Tensor) -> int:
        probabilities = np.exp(logits.double().numpy())
        probabilities /= probabilities.sum()
        entropy = -(probabilities * np.log(probabilities)).sum()
        return min(int(5 * (1 - entropy / np.log(len(probabilities)))), 4)

    weights: list[list[float]] = [[] for _ in range(25)]
    rows = [(batch, row) for batch in batches for row in range(len(batch.names))]
    for (batch, row), weight in zip(rows, vit, strict=True):
        assert batch.teachers is not None
        head = next(iter(batch.labels))
        pair = batch.teachers.vit_logits[head], batch.teachers.cnn_logits[head]
        of_vit, of_cnn = (fifth(logits[row]) for logits in pair if logits is not None)
        weights[5 * of_vit + of_cnn].append(weight)
    assert len([one for one in weights if one]) > 2
    for (mean, clips), of_bin in zip(found, weights, strict=True):
        assert clips == len(of_bin)
        wanted = np.mean(of_bin) if of_bin else math.nan
        assert mean == pytest.approx(wanted, rel=1e-4, nan_ok=True)


def test_a_run_on_labels_logs_nothing_of_teachers() -> None:
    model, _ = make_network()
    (log,) = run(model, None, [part(make_batch(), slice(4))], Method(LABELS_ONLY), epochs=1)
    wanted = {"loss", "ce", "learning_rate", "clips_per_sec", "waited"}
    wanted |= {"accuracy/verb", "accuracy/noun", "accuracy/action"}
    assert set(log.record) == wanted
    assert log.vit_weight_by_class == []
    assert log.vit_weight_by_confidence == []


def test_the_loop_asks_for_each_epoch_and_trains_in_training_mode() -> None:
    model, _ = make_network()
    asked: list[tuple[int, bool]] = []
    steps: list[int] = []

    def batches(epoch: int, first: int) -> Iterator[Batch]:
        assert first == 0
        asked.append((epoch, model.training))
        yield part(make_batch(), slice(2))

    recipe = make_recipe(epochs=3)
    logs = train(
        start_training(learner_of(model), recipe, 1),
        recipe=recipe,
        method=Method(LABELS_ONLY),
        batches=batches,
        on_step=lambda: steps.append(1),
    )
    for log in logs:
        assert len(steps) == log.epoch + 1
        model.eval()  # as a caller does who scores the network after each epoch
    assert asked == [(0, True), (1, True), (2, True)]


def test_more_batches_than_announced_are_refused() -> None:
    model, _ = make_network()
    batch = part(make_batch(), slice(2))
    recipe = make_recipe(epochs=1)
    training = start_training(learner_of(model), recipe, 1)
    logs = train(
        training, recipe=recipe, method=Method(LABELS_ONLY), batches=lambda *_: [batch, batch]
    )
    with pytest.raises(TrainingError, match="more than the 1 batches announced"):
        list(logs)


# ---- small things


def test_predictions_are_the_logits_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = create_model(NANO, HEADS, dropout=0.5).train()
    clips = make_batch().clips
    answer = predict(model, clips)
    assert not model.training
    assert not answer["verb"].requires_grad
    inputs = (clips.permute(0, 4, 1, 2, 3).double() / 255 - 0.45) / 0.225
    expected = model.features(inputs.float())
    torch.testing.assert_close(dict(answer), expected.logits, atol=1e-5, rtol=1e-4)
    alone = predict(model, clips[:1])
    torch.testing.assert_close(alone["noun"], answer["noun"][:1], atol=1e-5, rtol=1e-4)
