"""Mixup and CutMix of clips: two videos in one clip, and the share that each label has in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed with itself in reverse order; one for all its clips, as timm's default.

    Attributes:
        share: of the clip itself; the rest is its partner's.
        box: top, bottom, left, right as fractions of the frame: there the partner is shown, in
            every frame (CutMix, arXiv 1905.04899). None blends whole clips (mixup, 1710.09412).
    """

    share: float
    box: tuple[float, float, float, float] | None = None

    def main(self, labels: Tensor) -> Tensor:
        """The label with the greater share, (B,)."""
        return labels if self.share >= 0.5 else labels.flip(0)


def draw_mix(generator: np.random.Generator, *, mixup: float, cutmix: float, size: int) -> Mix:
    """Draw from Beta(α, α); one of both methods, with even odds, where both are on.

    Args:
        generator: decides.
        mixup: α of mixup; 0 is off.
        cutmix: α of CutMix; 0 is off.
        size: pixels of the clip: the box has whole ones, and the share is what it leaves.

    Raises:
        ValueError: both are off.
    """
    if mixup <= 0 and cutmix <= 0:
        raise ValueError("mixup and cutmix are both 0: nothing to draw")
    cuts = cutmix > 0 and (mixup <= 0 or bool(generator.random() < 0.5))
    alpha = cutmix if cuts else mixup
    share = float(generator.beta(alpha, alpha))
    if not cuts:
        return Mix(share)
    side = int(size * math.sqrt(1 - share))  # the box may reach beyond the frame, and is cut there
    middles = generator.integers(size, size=2)
    top, left = (max(0, int(middle) - side // 2) for middle in middles)
    bottom, right = (min(size, int(middle) + (side + 1) // 2) for middle in middles)
    shown = 1 - (bottom - top) * (right - left) / size**2
    return Mix(shown, (top / size, bottom / size, left / size, right / size))


def mix_clips(clips: Tensor, mix: Mix) -> Tensor:
    """Clips mixed with the batch in reverse.

    Args:
        clips: (B, 3, T, H, W) float; not changed.
        mix: how.
    """
    partners = clips.flip(0)
    if mix.box is None:
        return torch.lerp(partners, clips, mix.share)
    height, width = clips.shape[-2:]
    top, bottom = (round(mix.box[side] * height) for side in (0, 1))
    left, right = (round(mix.box[side] * width) for side in (2, 3))
    mixed = clips.clone()
    mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return mixed
