"""The optimiser's groups, the learning rate, the moving average, the precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from pipeline.config import Recipe
from pipeline.optimising import (
    make_optimiser,
    make_schedule,
)
from training_making import make_network, make_recipe

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
    optimiser = make_optimiser(model, branch, make_recipe(learning_rate=0.5, weight_decay=0.1))
    for parameter in before:
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()  # nothing but the decay: w ← w · (1 - 0.5 · 0.1)
    assert all(torch.equal(p, before[p]) for p in exempt)
    for parameter in decaying:
        torch.testing.assert_close(parameter.detach(), before[parameter] * 0.95)


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
