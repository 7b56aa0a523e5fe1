"""The branch: shapes, the identity start, its non-local block and excitation against numpy."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from pipeline.branch import StructureDiscrepancyBranch

Array = npt.NDArray[np.float64]


def small_branch(hidden_channels: int = 8) -> StructureDiscrepancyBranch:
    """A seeded branch of 6 → 5 channels on a 1x2x2 grid."""
    torch.manual_seed(0)
    return StructureDiscrepancyBranch(6, 5, (1, 2, 2), hidden_channels=hidden_channels)


def wake(branch: StructureDiscrepancyBranch) -> None:
    """Move the zero-initialised output convolution away from zero."""
    nn.init.normal_(branch.non_local.conv_out.weight)
    nn.init.normal_(branch.non_local.conv_out.bias)


def conv1(conv: nn.Conv3d, x: Array) -> Array:
    """A 1x1x1 convolution of (C, P) positions, from the module's weights."""
    weight = conv.weight.detach().double().flatten(start_dim=1).numpy()
    bias = conv.state_dict()["bias"].double().numpy()
    return np.asarray(weight @ x + bias[:, None])


@pytest.mark.parametrize("size", [(4, 6, 6), (13, 6, 6), (2, 7, 7), (1, 3, 5)])
def test_output_has_the_grid_of_the_residual(size: tuple[int, int, int]) -> None:
    branch = StructureDiscrepancyBranch(24, 16, (2, 7, 7))
    assert branch(torch.randn(3, 24, *size)).shape == (3, 16, 2, 7, 7)


def test_the_non_local_block_starts_as_the_identity() -> None:
    x = torch.randn(2, 8, 2, 3, 3)
    branch = small_branch()
    assert torch.equal(branch.non_local(x), x)
    wake(branch)
    assert not torch.allclose(branch.non_local(x), x, atol=1e-2)


def test_the_branch_against_numpy() -> None:
    branch = small_branch()
    wake(branch)
    feature_map = torch.randn(1, 6, 1, 4, 4)
    x = conv1(branch.reduce, feature_map[0].double().flatten(1).numpy())  # (hidden, positions)
    block = branch.non_local
    theta, phi, g = (conv1(conv, x) for conv in (block.conv_theta, block.conv_phi, block.conv_g))
    attended = np.zeros_like(g)
    for position in range(x.shape[1]):  # y_i = sum_j softmax_j(theta_i · phi_j / sqrt(4)) g_j
        affinity = np.exp([theta[:, position] @ phi[:, j] / 2 for j in range(x.shape[1])])
        attended[:, position] = g @ (affinity / affinity.sum())
    x = x + conv1(block.conv_out, attended)
    squeeze, _, expand, _ = branch.excite.block
    excitation = conv1(expand, np.maximum(conv1(squeeze, x.mean(axis=1, keepdims=True)), 0))
    x = conv1(branch.predict, x / (1 + np.exp(-excitation)))
    expected = x.reshape(5, 1, 2, 2, 2, 2).mean(axis=(3, 5))  # 4x4 → 2x2 by averages
    np.testing.assert_allclose(branch(feature_map)[0].detach().numpy(), expected, atol=1e-5)


def test_gradients_reach_every_parameter() -> None:
    branch = small_branch()
    wake(branch)  # behind a zero output convolution, the block's inside waits for the first step
    branch(torch.randn(4, 6, 2, 4, 4)).square().mean().backward()
    untouched = [n for n, p in branch.named_parameters() if p.grad is None or not p.grad.any()]
    # softmax over j does not see what is added to all phi_j alike along theta_i: conv_phi's bias
    # moves nothing, and its gradient is rounding.
    assert [name for name in untouched if name != "non_local.conv_phi.bias"] == []


def test_the_first_step_opens_the_non_local_block() -> None:
    branch = small_branch()
    branch(torch.randn(4, 6, 2, 4, 4)).square().mean().backward()
    assert branch.non_local.conv_out.weight.grad.any()
    assert not branch.non_local.conv_g.weight.grad.any()


def test_samples_do_not_mix_and_training_mode_changes_nothing() -> None:
    branch = small_branch()
    wake(branch)
    maps = torch.randn(3, 6, 2, 4, 4)
    alone = torch.cat([branch(one) for one in torch.split(maps, 1)])
    torch.testing.assert_close(branch(maps), alone)
    torch.testing.assert_close(branch.train()(maps), branch.eval()(maps))


def test_channels_last_maps_give_the_same() -> None:
    branch = small_branch()
    maps = torch.randn(2, 6, 2, 4, 4)
    last = maps.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(branch(last), branch(maps))


@pytest.mark.parametrize(
    ("feature_map", "message"),
    [
        (torch.zeros(2, 7, 2, 4, 4), r"\(2, 7, 2, 4, 4\) must be \(batch, 6, time"),
        (torch.zeros(2, 6), r"feature_map \(2, 6\).*last feature map"),
    ],
)
def test_a_wrong_map_is_refused(feature_map: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_branch()(feature_map)


def test_sizes_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_channels 1 at least 2"):
        small_branch(hidden_channels=1)
    with pytest.raises(ValueError, match=r"grid \(0, 7, 7\) must be at least 1"):
        StructureDiscrepancyBranch(6, 5, (0, 7, 7))
