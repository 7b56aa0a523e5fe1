"""The optimiser's groups, the learning rate, the moving average, the precision."""

from __future__ import annotations

import copy
import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from pipeline.config_training import Recipe
from pipeline.models import VideoModel, create_model
from pipeline.objective import LABELS_ONLY, Method, TrainingError
from pipeline.optimising import (
    is_positional,
    layer_depths,
    make_optimiser,
    make_schedule,
    start_training,
    uses_bf16,
)
from pipeline.training import train, train_step
from pipeline.views import normalise
from training_making import NANO, learner_of, make_batch, make_network, make_recipe

MVIT = "torchvision/mvit_tiny"

# ---- the parameter groups


def test_biases_and_norms_get_no_weight_decay() -> None:
    model, branch = make_network()
    exempt = [
        p
        for name, p in (*model.named_parameters(), *branch.named_parameters())
        if name.endswith("bias")
    ]
    exempt += [m.weight for m in model.modules() if isinstance(m, nn.BatchNorm3d)]
    decaying = [
        m.weight
        for m in (*model.modules(), *branch.modules())
        if isinstance(m, nn.Conv3d | nn.Linear)
    ]
    before = {p: p.detach().clone() for p in (*exempt, *decaying)}
    assert set(before) == {*model.parameters(), *branch.parameters()}
    optimiser = make_optimiser(
        learner_of(model, branch), make_recipe(learning_rate=0.5, weight_decay=0.1)
    )
    for parameter in before:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()  # nothing but the decay: w ← w · (1 - 0.5 · 0.1)
    assert all(torch.equal(p, before[p]) for p in exempt)
    for parameter in decaying:
        torch.testing.assert_close(parameter.detach(), before[parameter] * 0.95)


@pytest.fixture(scope="module")
def vit() -> VideoModel:
    return create_model(MVIT, 3)


def test_the_depths_of_an_mvit(vit: VideoModel) -> None:
    depths = layer_depths(vit)
    assert depths.keys() == dict(vit.named_parameters()).keys()
    for name, depth in depths.items():
        if name.startswith(("net.conv_proj.", "net.pos_encoding.")):
            assert depth == 0, name
        elif name.startswith(("net.norm.", "net.head.")):
            assert depth == 5, name
        else:  # four blocks
            assert name.startswith(f"net.blocks.{depth - 1}."), name
    assert set(depths.values()) == set(range(6))


def test_the_depths_of_an_x3d_and_of_a_wrapped_network() -> None:
    model, _ = make_network()
    depths = layer_depths(model)  # six blocks, of which the stem is the first, the head the last
    assert {depth for name, depth in depths.items() if ".blocks.5." in name} == {6}
    assert {depth for name, depth in depths.items() if ".blocks.0." in name} == {1}
    model.net = nn.ModuleDict({"image": model.net})
    wrapped = {
        name.replace("net.image.", "net."): depth for name, depth in layer_depths(model).items()
    }
    assert wrapped == depths


def test_a_network_without_blocks_has_no_depths() -> None:
    model, _ = make_network()
    model.net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(
        TrainingError, match=r"x3d_nano has no list of blocks .*layer_decay to 1\.0"
    ):
        make_optimiser(learner_of(model), make_recipe(), layer_decay=0.5)
    make_optimiser(learner_of(model), make_recipe(), decay_positions=False)  # asks for no depths


def test_a_step_with_layer_decay_by_hand(vit: VideoModel) -> None:
    """Adam's first step is the rate times the gradient's sign, whatever its size."""
    model = copy.deepcopy(vit)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = make_recipe(learning_rate=0.01, weight_decay=0.1)
    optimiser = make_optimiser(learner_of(model), recipe, layer_decay=0.75, decay_positions=False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, -3.0)
    optimiser.step()
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        from_head = 5 if parts[1] in ("conv_proj", "pos_encoding") else 0
        from_head = 4 - int(parts[2]) if parts[1] == "blocks" else from_head
        rate = 0.01 * 0.75**from_head
        plain = parts[-1] == "weight" and before[name].ndim > 1
        expected = before[name] * (1 - rate * 0.1 * plain) + rate
        torch.testing.assert_close(parameter.detach(), expected, msg=name)


def test_layer_decay_leaves_the_branch_at_the_full_rate_and_no_parameter_out() -> None:
    model, branch = make_network()
    optimiser = make_optimiser(
        learner_of(model, branch), make_recipe(learning_rate=0.01), layer_decay=0.5
    )
    rates = {p: group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert set(rates) == {*model.parameters(), *branch.parameters()}
    assert {rates[p] for p in branch.parameters()} == {0.01}
    assert sum(len(group["params"]) for group in optimiser.param_groups) == len(rates)
    assert min(rates.values()) == 0.01 * 0.5**5


def test_positional_parameters_decay_unless_told_otherwise(vit: VideoModel) -> None:
    named = dict(vit.named_parameters())
    positional = {name for name in named if ".rel_pos_" in name}
    assert len(positional) == 3 * 4
    for decays in (True, False):
        optimiser = make_optimiser(learner_of(vit), make_recipe(), decay_positions=decays)
        free = {id(p) for g in optimiser.param_groups if not g["weight_decay"] for p in g["params"]}
        assert {name for name in positional if id(named[name]) in free} == (
            set() if decays else positional
        )
        assert id(named["net.head.1.weight"]) not in free
        assert id(named["net.pos_encoding.class_token"]) in free


@pytest.mark.parametrize(
    ("name", "positional"),
    [
        ("net.pos_embed", True),
        ("net.cls_token", True),
        ("net.cls_positional_encoding.pos_embed_spatial", True),
        ("net.features.0.0.attn.relative_position_bias_table", True),
        ("net.pos_encoding.class_token", True),
        ("net.pos_proj.weight", False),
        ("net.blocks.0.attn.proj.weight", False),
        ("net.composition", False),
    ],
)
def test_positional_parameters_by_name(name: str, positional: bool) -> None:
    assert is_positional(name) is positional


# ---- the learning rate


def rates(steps: int, recipe: Recipe, steps_per_epoch: int) -> list[float]:
    """The learning rate of every step."""
    optimiser = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
    schedule = make_schedule(optimiser, recipe, steps_per_epoch)
    used = []
    for _ in range(steps):
        used.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return used


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "share"), [(14, 19, 0.1), (2, 3, 0.3), (1, 1, 0.1)]
)
def test_the_schedule_is_the_one_cycle_of_torch(epochs: int, per_epoch: int, share: float) -> None:
    recipe = make_recipe(epochs=epochs, learning_rate=0.02, warmup_share=share)
    steps = epochs * per_epoch
    optimiser = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.02)
    reference = OneCycleLR(
        optimiser, max_lr=0.02, total_steps=steps + 1, pct_start=share, cycle_momentum=False
    )
    expected = []
    for _ in range(steps):
        expected.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        reference.step()
    # OneCycleLR ends at 4e-6 of the maximum, ours at 0.
    np.testing.assert_allclose(rates(steps, recipe, per_epoch), expected, atol=0.02 * 5e-6)


def test_the_rate_warms_up_to_the_maximum_and_decays_as_a_cosine() -> None:
    used = rates(199, make_recipe(epochs=1, learning_rate=0.01, warmup_share=0.1), 199)
    assert used[0] == pytest.approx(0.01 / 25)
    assert used[:20] == sorted(used[:20])
    assert max(used) == used[19] == pytest.approx(0.01)  # a tenth of the steps are over
    decay = [0.01 * 0.5 * (1 + math.cos(math.pi * (step - 19) / 180)) for step in range(19, 199)]
    np.testing.assert_allclose(used[19:], decay, rtol=1e-9)
    assert used[-1] < 0.01 * 1e-3


def test_a_warm_up_of_exactly_one_step_is_no_division_by_zero() -> None:
    used = rates(9, make_recipe(epochs=3, learning_rate=0.01, warmup_share=0.1), 3)
    assert used[0] == pytest.approx(0.01)
    assert used == sorted(used, reverse=True)


# ---- the defaults


def test_the_defaults_train_as_a_plain_loop_to_the_last_bit() -> None:
    """The recipe of the demo's teachers, written out: what it gave before, it must give again."""
    recipe = make_recipe(epochs=2, learning_rate=3e-3, weight_decay=0.1, warmup_share=0.3)
    batches = [make_batch(4, 1), make_batch(3, 2)]
    torch.manual_seed(0)
    trained = create_model(NANO, {"verb": 5, "noun": 3}, dropout=0.2)
    plain = copy.deepcopy(trained).to(memory_format=torch.channels_last_3d).train()
    torch.manual_seed(1)
    logs = train(
        start_training(learner_of(trained), recipe, 2),
        recipe=recipe,
        method=Method(LABELS_ONLY, label_smoothing=0.1),
        batches=lambda *_: batches,
    )
    list(logs)
    torch.manual_seed(1)
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.1},
    ]
    optimiser = torch.optim.AdamW(groups, fused=True)
    for step, batch in enumerate(batches * 2):
        way = step / 0.5 if step < 0.5 else (step - 0.5) / 3.5  # the peak is at 0.3 · 5 - 1
        cosine = (1 + math.cos(math.pi * way)) / 2
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - (1 - 1 / 25) * cosine if step < 0.5 else cosine)
        clips = normalise(batch.clips, plain.clip)
        logits = plain.features(clips.contiguous(memory_format=torch.channels_last_3d)).logits
        loss = torch.stack(
            [
                functional.cross_entropy(logits[head], labels, label_smoothing=0.1)
                for head, labels in batch.labels.items()
            ]
        ).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimiser.step()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor), name


# ---- the moving average


def test_the_average_is_its_closed_form() -> None:
    """After n steps: dⁿ·w₀ + (1 - d)·Σ dⁿ⁻ⁱ·wᵢ, of the norms' statistics too; counts are copied."""
    model, _ = make_network()
    decay = 0.8
    recipe = make_recipe(epochs=2, learning_rate=1e-2, ema_decay=decay)
    training = start_training(learner_of(model), recipe, 2)
    assert training.average is not None
    assert training.result is training.average.module is not model
    states: list[dict[str, Tensor]] = []

    def remember() -> None:
        states.append({name: t.clone().double() for name, t in model.state_dict().items()})

    remember()
    logs = train(
        training,
        recipe=recipe,
        method=Method(LABELS_ONLY),
        batches=lambda *_: [make_batch(4, 1), make_batch(4, 2)],
        on_step=remember,
    )
    assert len(list(logs)) == 2
    n = len(states) - 1
    assert n == 4
    for name, averaged in training.result.state_dict().items():
        if averaged.is_floating_point():
            expected = decay**n * states[0][name]
            for i in range(1, n + 1):
                expected += (1 - decay) * decay ** (n - i) * states[i][name]
            torch.testing.assert_close(averaged.double(), expected, atol=1e-6, rtol=1e-5, msg=name)
        else:
            assert averaged.item() == states[n][name].item() == n
    moved = training.result.net.blocks[5].proj.weight
    assert not torch.equal(moved, model.net.blocks[5].proj.weight)


def test_without_an_average_the_result_is_the_network() -> None:
    model, _ = make_network()
    training = start_training(learner_of(model), make_recipe(), 1)
    assert training.average is None
    assert training.result is model


# ---- the precision


@pytest.mark.parametrize(
    ("precision", "device", "able", "expected"),
    [
        ("fp32", "cuda", True, False),
        ("auto", "cuda", True, True),
        ("auto", "cuda", False, False),
        ("bf16", "cuda", True, True),
        ("fp32", "cpu", True, False),
        ("auto", "cpu", True, False),
        ("bf16", "cpu", False, True),
    ],
)
def test_bf16_is_used_where_it_is_asked_for_or_computed(
    precision: Literal["fp32", "bf16", "auto"],
    device: str,
    able: bool,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: able)
    assert uses_bf16(precision, torch.device(device)) is expected


def test_bf16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    with pytest.raises(TrainingError, match="bf16: cuda does not compute in it; use fp32"):
        uses_bf16("bf16", torch.device("cuda"))


def test_a_step_in_bf16_is_nearly_the_step_in_fp32() -> None:
    losses, gradients = [], []
    for bf16 in (False, True):
        model, branch = make_network()
        learner = learner_of(model, branch)
        optimiser = make_optimiser(learner, make_recipe())
        (outcome,) = train_step(
            learner.train(), make_batch(8), Method(LABELS_ONLY), optimiser, 1e9, bf16=bf16
        )
        answer = outcome.answer.student
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert {t.dtype for t in (*answer.logits.values(), answer.map)} == {torch.float32}
        losses.append(outcome.terms["loss"].item())
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert functional.cosine_similarity(*gradients, dim=0) > 0.97
