"""Names → video networks that all answer alike: logits, pooled features, last feature map.

The networks are the libraries' own, with their own parameter names, so published weights load.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.video.mvit import MSBlockConfig, MViT, mvit_v2_s

from pipeline.model_names import check_model_name
from pipeline.views import ClipSpec

with warnings.catch_warnings():
    # pytorchvideo 0.1.5 uses torch.jit.script at import, which torch now calls deprecated.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    from pytorchvideo.models.x3d import create_x3d

Family = Literal["vit", "cnn"]


class Features(NamedTuple):
    """What a network says of a batch of clips.

    Attributes:
        logits: by head, (B, K). Never probabilities.
        pooled: (B, C_pooled), what the last linear layer reads; in training, before its dropout.
        map: (B, C_map, T, H, W), the last feature map. MViT: the tokens after the last norm,
            without the class token, on their grid. X3D: what the head takes, every frame at a
            32nd of the size (rounded up); its head widens it before it averages.
    """

    logits: dict[str, Tensor]
    pooled: Tensor
    map: Tensor


class VideoModel(nn.Module):
    """A network of the registry behind one interface. Made by `create_model`.

    Attributes:
        name: the registry's name.
        family: `vit` or `cnn`.
        clip: the clip it was made for. X3D takes other sizes too, MViT only this one.
        heads: number of classes by head. The last linear layer holds all heads side by side.
        net: the library's module.
        pooled_channels: C_pooled of `Features`.
        map_channels: C_map of `Features`.
    """

    pooled_channels: int
    map_channels: int

    def __init__(self, name: str, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.family: Family = REGISTRY[name].family
        self.clip = clip
        self.heads = dict(heads)
        self.net: Any = net

    def features(self, clips: Tensor) -> Features:
        """All outputs of one forward pass over clips (B, 3, T, H, W) float."""
        raise NotImplementedError

    def forward(self, clips: Tensor) -> Tensor:
        """Logits of all heads side by side, (B, ΣK)."""
        logits: Tensor = self.net(clips)
        return logits

    def split_heads(self, logits: Tensor) -> dict[str, Tensor]:
        """Cut (B, ΣK) into one (B, K) per head."""
        parts = torch.split(logits, list(self.heads.values()), dim=1)
        return dict(zip(self.heads, parts, strict=True))


class _TorchvisionMViT(VideoModel):
    """torchvision's MViT; pooled features are the class token after the last norm."""

    def __init__(self, name: str, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module) -> None:
        super().__init__(name, clip, heads, net)
        self.pooled_channels = self.map_channels = self.net.norm.normalized_shape[0]

    def features(self, clips: Tensor) -> Features:
        net = self.net  # the steps of torchvision's MViT.forward, with the tokens kept
        tokens = net.pos_encoding(net.conv_proj(clips).flatten(2).transpose(1, 2))
        thw = (net.pos_encoding.temporal_size, *net.pos_encoding.spatial_size)
        for block in net.blocks:
            tokens, thw = block(tokens, thw)
        tokens = net.norm(tokens)  # (B, 1 + T·H·W, C)
        pooled = tokens[:, 0]
        return Features(
            logits=self.split_heads(net.head(pooled)),
            pooled=pooled,
            map=tokens[:, 1:].transpose(1, 2).unflatten(2, thw),
        )


class _PytorchvideoX3D(VideoModel):
    """pytorchvideo's X3D; pooled features are the input of its last linear layer, `proj`."""

    def __init__(self, name: str, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module) -> None:
        super().__init__(name, clip, heads, net)
        head = self.net.blocks[-1]
        # The published head averages over a window of fixed size; this is the same average for
        # the clip it was built for, and takes other sizes too.
        head.pool.pool = nn.AdaptiveAvgPool3d(1)
        self.pooled_channels = head.proj.in_features
        self.map_channels = head.pool.pre_conv.in_channels

    def features(self, clips: Tensor) -> Features:
        feature_map = clips
        for block in self.net.blocks[:-1]:
            feature_map = block(feature_map)
        head = self.net.blocks[-1]
        pooled = head.pool(feature_map).flatten(1)
        dropped = pooled if head.dropout is None else head.dropout(pooled)
        return Features(
            logits=self.split_heads(head.proj(dropped)),
            pooled=pooled,
            map=feature_map,
        )


Builder = Callable[[str, ClipSpec, Mapping[str, int], float], VideoModel]


def _mvit_v2_s(name: str, clip: ClipSpec, heads: Mapping[str, int], dropout: float) -> VideoModel:
    net = mvit_v2_s(weights=None, num_classes=sum(heads.values()), dropout=dropout)
    return _TorchvisionMViT(name, clip, heads, net)


def _mvit_tiny(name: str, clip: ClipSpec, heads: Mapping[str, int], dropout: float) -> VideoModel:
    """MViTv2's blocks at the size of the demo: 4×8×8 tokens, then 4×4×4."""

    def block(num_heads: int, channels: tuple[int, int], q: int, kv: int) -> MSBlockConfig:
        kernel = [3, 3, 3]
        return MSBlockConfig(num_heads, *channels, kernel, kernel, [1, q, q], [1, kv, kv])

    net = MViT(
        spatial_size=(clip.size, clip.size),
        temporal_size=clip.frames,
        block_setting=[
            block(1, (64, 64), 1, 2),
            block(2, (64, 128), 2, 2),
            block(2, (128, 128), 1, 1),
            block(2, (128, 128), 1, 1),
        ],
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        dropout=dropout,
        num_classes=sum(heads.values()),
        patch_embed_kernel=(3, 8, 8),
        patch_embed_stride=(2, 6, 6),
        patch_embed_padding=(1, 1, 1),
    )
    return _TorchvisionMViT(name, clip, heads, net)


def _x3d(width: float, depth: float, stem: int = 12, head_dim: int = 2048) -> Builder:
    def build(name: str, clip: ClipSpec, heads: Mapping[str, int], dropout: float) -> VideoModel:
        net = create_x3d(
            input_clip_length=clip.frames,
            input_crop_size=clip.size,
            model_num_class=sum(heads.values()),
            dropout_rate=dropout,
            width_factor=width,
            depth_factor=depth,
            stem_dim_in=stem,
            head_dim_out=head_dim,
            inner_act=nn.SiLU,  # the same function as pytorchvideo's Swish, in one kernel
            head_activation=None,  # the default is Softmax, in training too: logits wanted
        )
        return _PytorchvideoX3D(name, clip, heads, net)

    return build


@dataclass(frozen=True)
class Entry:
    """One line of the registry."""

    family: Family
    clip: ClipSpec
    build: Builder


REGISTRY: dict[str, Entry] = {
    "torchvision/mvit_v2_s": Entry("vit", ClipSpec(16, 4, 224), _mvit_v2_s),
    "torchvision/mvit_tiny": Entry("vit", ClipSpec(8, 6, 48), _mvit_tiny),
    "pytorchvideo/x3d_xs": Entry("cnn", ClipSpec(4, 12, 182), _x3d(2.0, 2.2)),
    "pytorchvideo/x3d_s": Entry("cnn", ClipSpec(13, 6, 182), _x3d(2.0, 2.2)),
    "pytorchvideo/x3d_m": Entry("cnn", ClipSpec(16, 5, 224), _x3d(2.0, 2.2)),
    "pytorchvideo/x3d_tiny": Entry("cnn", ClipSpec(8, 6, 48), _x3d(1.0, 1.0, head_dim=512)),
    "pytorchvideo/x3d_nano": Entry("cnn", ClipSpec(8, 6, 40), _x3d(1.0, 0.5, 6, head_dim=256)),
}


def model_entry(name: str) -> Entry:
    """Look a name up.

    Raises:
        UnknownModelError: the name is unknown; the message lists the nearest names.
    """
    return REGISTRY[check_model_name(name)]


def create_model(
    name: str, num_classes: int | Mapping[str, int], *, dropout: float = 0.5
) -> VideoModel:
    """Build a network with random weights.

    Args:
        name: a name of the registry, such as `torchvision/mvit_v2_s`.
        num_classes: number of classes, or one number per head.
        dropout: before the last linear layer, in training.

    Raises:
        UnknownModelError: the name is unknown; the message lists the nearest names.
    """
    entry = model_entry(name)
    heads = num_classes if isinstance(num_classes, Mapping) else {"action": num_classes}
    return entry.build(name, entry.clip, heads, dropout)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: VideoModel) -> int:
    """Multiply-adds of one clip, the field's "FLOPs", counted by fvcore in evaluation mode."""
    from fvcore.nn import FlopCountAnalysis  # noqa: PLC0415 (slow to import, seldom needed)

    clip = model.clip
    device = next(model.parameters()).device
    example = torch.zeros(1, 3, clip.frames, clip.size, clip.size, device=device)
    modes = {module: module.training for module in model.modules()}  # parts may be frozen
    model.eval()
    analysis = FlopCountAnalysis(model, example)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit.trace, which fvcore uses, warns
            return int(analysis.total())
    finally:
        for module, training in modes.items():
            module.training = training
