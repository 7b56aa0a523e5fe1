"""Every CNN of the registry as a student: the branch fits it, and is gone from what is saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.branch import StructureDiscrepancyBranch
from pipeline.models import REGISTRY, count_flops, count_parameters, create_model
from pipeline.objective import Method
from pipeline.training import train_step
from pipeline.weights import load_weights, save_weights
from training_making import ALL, HEADS, NANO, RESIDUAL, learner_of, make_batch

CNNS = [name for name, entry in REGISTRY.items() if entry.family == "cnn"] + ["timm/resnet18"]


@pytest.mark.parametrize(
    "name", [n if n == NANO else pytest.param(n, marks=pytest.mark.slow) for n in CNNS]
)
def test_the_saved_student_is_the_plain_network(name: str, tmp_path: Path) -> None:
    """After a step with all terms: same tensors, parameters, FLOPs and outputs."""
    torch.manual_seed(0)
    model = create_model(name, HEADS, dropout=0.0)
    branch = StructureDiscrepancyBranch(model.map_channels, RESIDUAL[0], RESIDUAL[1:])
    first = [parameter.detach().clone() for parameter in branch.parameters()]
    batch = make_batch(3)
    batch = replace(batch, clips=batch.clips.repeat(1, 1, 2, 2, 1)[:, :, :64, :64])
    learner = learner_of(model, branch)
    optimiser = torch.optim.SGD(learner.parameters(), 1e-3)
    (outcome,) = train_step(learner, batch, Method(ALL, temperature=2.0), optimiser, 1.0)
    assert outcome.terms.keys() == {"loss", "ce", "kd", "sdd", "rkd"}
    moved = [not torch.equal(a, b) for a, b in zip(first, branch.parameters(), strict=True)]
    assert any(moved)
    path = tmp_path / "student.safetensors"
    save_weights(model, path, {})

    plain = create_model(name, HEADS).eval()
    assert set(load_file(path)) == set(plain.net.state_dict())
    saved = load_weights(name, HEADS, path)
    assert count_parameters(saved) == count_parameters(plain)
    small = replace(model.clip, frames=8, size=64)
    assert count_flops(saved, small) == count_flops(plain, small)
    plain.net.load_state_dict(load_file(path))
    clips = torch.randn(1, 3, 8, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(saved(clips), plain(clips))
        torch.testing.assert_close(saved(clips), model.eval()(clips))
