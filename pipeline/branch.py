"""The structure discrepancy branch (SDB): predicts the teachers' residual from the student's map.

It exists in training only: the exported student has exactly the parameters of the plain backbone.
"""

import warnings

from torch import Tensor, nn

with warnings.catch_warnings():
    # fvcore and pytorchvideo use torch.jit.script at import, which torch now calls deprecated.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    from fvcore.nn.squeeze_excitation import SqueezeExcitation
    from pytorchvideo.layers.nonlocal_net import create_nonlocal

SQUEEZE_RATIO = 16
"""Channels of the squeeze-and-excitation bottleneck: hidden / 16, as in X3D and the SE paper."""


class StructureDiscrepancyBranch(nn.Module):
    """1x1x1 conv → non-local block → squeeze-and-excitation → 1x1x1 conv → pool to the grid.

    The non-local block is the embedded Gaussian (softmax) one of Wang et al., CVPR 2018,
    arXiv 1711.07971, with half the channels inside and its affinities divided by √channels. Its
    output convolution starts at zero, so the block starts as the identity, as theirs does; it has
    no normalisation layer: a sample's prediction must not depend on its batch.
    Source of the branch: arXiv 2511.09469; of squeeze-and-excitation: arXiv 1709.01507.

    The affinities take B · (T·H·W)² values: 157 MB for 64 samples of a 16x7x7 map in float32.

    Attributes:
        grid: (T', H', W') of the prediction.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        grid: tuple[int, int, int],
        hidden_channels: int = 128,
    ) -> None:
        """Build the branch.

        Args:
            in_channels: Channels of the student's last feature map.
            out_channels: Channels D of the cached residual.
            grid: (T', H', W') of the cached residual.
            hidden_channels: Width of the branch, at least 2.

        Raises:
            ValueError: A size is too small.
        """
        super().__init__()
        if min(in_channels, out_channels, *grid) < 1 or hidden_channels < 2:
            raise ValueError(
                f"in_channels {in_channels}, out_channels {out_channels} and grid {grid} must be "
                f"at least 1, hidden_channels {hidden_channels} at least 2"
            )
        self.in_channels = in_channels
        self.grid = grid
        self.reduce = nn.Conv3d(in_channels, hidden_channels, kernel_size=1)
        self.non_local = create_nonlocal(
            dim_in=hidden_channels,
            dim_inner=hidden_channels // 2,
            instantiation="softmax",
            norm=None,
        )
        nn.init.zeros_(self.non_local.conv_out.weight)
        nn.init.zeros_(self.non_local.conv_out.bias)
        self.excite = SqueezeExcitation(
            hidden_channels,
            num_channels_reduced=max(hidden_channels // SQUEEZE_RATIO, 8),
            is_3d=True,
        )
        self.predict = nn.Conv3d(hidden_channels, out_channels, kernel_size=1)
        self.pool = nn.AdaptiveAvgPool3d(grid)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Predict the residual.

        Args:
            feature_map: (B, in_channels, T, H, W), the student's last feature map. Where an axis
                is smaller than the grid's, adaptive pooling repeats its cells.

        Returns:
            (B, out_channels, T', H', W').

        Raises:
            ValueError: The map is not (B, in_channels, T, H, W).
        """
        if feature_map.ndim != 5 or feature_map.shape[1] != self.in_channels:
            raise ValueError(
                f"feature_map {tuple(feature_map.shape)} must be (batch, {self.in_channels}, "
                "time, height, width): build the branch for this student's last feature map"
            )
        hidden = self.reduce(feature_map)  # (B, hidden, T, H, W), as the next two
        hidden = self.non_local(hidden)
        hidden = self.excite(hidden)
        predicted: Tensor = self.pool(self.predict(hidden))
        return predicted
