"""What every network of the registry answers: logits, pooled features, last feature map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.views import ClipSpec

Family = Literal["vit", "cnn"]

# The central share of the short side that most published evaluations see; 112 / 128 is the same.
CROP_OF_RESIZE = 224 / 256


class ClipSizeError(ValueError):
    """A network cannot take clips of this size; the message says which it takes."""


class Features(NamedTuple):
    """What a network says of a batch of clips.

    Attributes:
        logits: by head, (B, K). Never probabilities.
        pooled: (B, C_pooled), what the last linear layer reads; in training, before its dropout.
        map: (B, C_map, T, H, W), the last feature map. Transformers: the tokens after the last
            norm, without the class token, on their grid. Others: what the head takes.
    """

    logits: dict[str, Tensor]
    pooled: Tensor
    map: Tensor

    def float32(self) -> Features:
        """The same, out of whatever precision an autocast left it in."""
        logits = {head: of_head.float() for head, of_head in self.logits.items()}
        return Features(logits, self.pooled.float(), self.map.float())


class VideoModel(nn.Module):
    """A network of the registry behind one interface. Made by `create_model`.

    Attributes:
        name: the registry's name.
        family: `vit` or `cnn`.
        clip: the clip it was made for.
        heads: number of classes by head. The last linear layer holds all heads side by side.
        net: the library's module.
        pooled_channels: C_pooled of `Features`.
        map_channels: C_map of `Features`.
    """

    pooled_channels: int
    map_channels: int

    def __init__(
        self, name: str, family: Family, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module
    ) -> None:
        super().__init__()
        self.name = name
        self.family: Family = family
        self.clip = clip
        self.heads = dict(heads)
        self.net: Any = net

    def features(self, clips: Tensor) -> Features:
        """All outputs of one forward pass over clips (B, 3, T, H, W) float.

        Raises:
            ClipSizeError: the network cannot take clips of this size.
        """
        raise NotImplementedError

    def forward(self, clips: Tensor) -> Tensor:
        """Logits of all heads side by side, (B, ΣK)."""
        return torch.cat(list(self.features(clips).logits.values()), dim=1)

    def split_heads(self, logits: Tensor) -> dict[str, Tensor]:
        """Cut (B, ΣK) into one (B, K) per head."""
        parts = torch.split(logits, list(self.heads.values()), dim=1)
        return dict(zip(self.heads, parts, strict=True))

    def check_clip_size(self, clips: Tensor) -> None:
        """Refuse clips of another size than `clip`: for networks with tables of positions.

        Raises:
            ClipSizeError: the clips have another size.
        """
        clip = self.clip
        frames, height, width = (int(size) for size in clips.shape[2:])
        if (frames, height, width) != (clip.frames, clip.size, clip.size):
            raise ClipSizeError(
                f"{self.name} takes clips of {clip.frames} frames of {clip.size}x{clip.size} "
                f"pixels, got {frames} frames of {width}x{height}: it has one weight per position. "
                "Cut the clips by the model's own `clip`, or take a network that fits any size, "
                "such as pytorchvideo/x3d_s"
            )


@dataclass(frozen=True)
class Published:
    """What the makers of a network say of it.

    Attributes:
        top1: Kinetics-400 top-1 accuracy, a share of 1, averaged over the makers' several views.
        parameters: millions, with 400 classes.
        gflops: 10⁹ multiply-adds of one clip (frames, size) of `measured_at`.
        measured_at: (frames, pixels) of that clip.
    """

    top1: float
    parameters: float
    gflops: float
    measured_at: tuple[int, int]


Builder = Callable[[str, ClipSpec, Mapping[str, int], float], VideoModel]


@dataclass(frozen=True)
class Entry:
    """One line of the registry."""

    family: Family
    clip: ClipSpec
    build: Builder
    published: Published | None = None
