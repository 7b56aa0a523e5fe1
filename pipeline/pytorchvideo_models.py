"""The registry's networks from pytorchvideo, with its own builders and parameter names.

Configurations are those of `pytorchvideo.models.hub` 0.1.5, figures those of its model zoo
(https://github.com/facebookresearch/pytorchvideo/blob/main/docs/source/model_zoo.md), whose FLOPs
are of the test crop; X3D-L is from https://github.com/facebookresearch/SlowFast MODEL_ZOO.md
and MViT-B 16x4 from its paper, arXiv 2104.11227; accuracies of both are the hub's docstrings'.
All heads answer logits: no activation, whatever the library's default (X3D's is Softmax).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model_interface import (
    CROP_OF_RESIZE,
    Builder,
    ClipSizeError,
    Entry,
    Features,
    Published,
    VideoModel,
)
from pipeline.views import ClipSpec

with warnings.catch_warnings():
    # pytorchvideo 0.1.5 uses torch.jit.script at import, which torch now calls deprecated.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    from pytorchvideo.models.hub.vision_transformers import mvit_video_base_config
    from pytorchvideo.models.resnet import create_resnet
    from pytorchvideo.models.slowfast import create_slowfast
    from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers
    from pytorchvideo.models.x3d import create_x3d

ALPHA = 4
"""SlowFast's frames of the fast pathway for each of the slow one."""


class _PytorchvideoX3D(VideoModel):
    """X3D; pooled features are the input of its last linear layer, `proj`.

    The map is what the head takes, every frame at a 32nd of the size (rounded up); the head widens
    it before it averages.
    """

    def __init__(self, name: str, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module) -> None:
        super().__init__(name, "cnn", clip, heads, net)
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
        return Features(
            logits=self.split_heads(_of_head(head, pooled)),
            pooled=pooled,
            map=feature_map,
        )

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.net(clips)
        return logits


class _PytorchvideoSlow(VideoModel):
    """Slow, a 3D ResNet; pooled features are the mean of the last map."""

    def __init__(self, name: str, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module) -> None:
        super().__init__(name, "cnn", clip, heads, net)
        head = self.net.blocks[-1]
        head.pool = nn.AdaptiveAvgPool3d(1)  # as in X3D
        self.pooled_channels = self.map_channels = head.proj.in_features

    def features(self, clips: Tensor) -> Features:
        feature_map = clips
        for block in self.net.blocks[:-1]:
            feature_map = block(feature_map)
        pooled = self.net.blocks[-1].pool(feature_map).flatten(1)
        return Features(
            logits=self.split_heads(_of_head(self.net.blocks[-1], pooled)),
            pooled=pooled,
            map=feature_map,
        )


class _PytorchvideoSlowFast(VideoModel):
    """SlowFast, both pathways from one clip: the fast one's; the slow one takes every fourth frame.

    The frames of the slow pathway are those of the library's own `PackPathway` (its torch hub
    tutorial): `linspace(0, T - 1, T / 4)`, rounded down. The map is the slow pathway's last one
    with the fast pathway's averaged over the four frames beside each of its own: its mean over time
    and space is the pooled features.
    """

    def __init__(self, name: str, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module) -> None:
        super().__init__(name, "cnn", clip, heads, net)
        pathways = self.net.blocks[-2]
        pathways.pool = nn.ModuleList(nn.AdaptiveAvgPool3d(1) for _ in pathways.pool)  # as in X3D
        self.pooled_channels = self.map_channels = self.net.blocks[-1].proj.in_features

    def pathways(self, clips: Tensor) -> list[Tensor]:
        """The clips of the slow and of the fast pathway.

        Raises:
            ClipSizeError: the number of frames is no multiple of 4.
        """
        frames = int(clips.shape[2])
        if frames % ALPHA:
            raise ClipSizeError(
                f"{self.name} takes clips whose frames are a multiple of {ALPHA}, got {frames}: "
                f"its slow pathway sees one in {ALPHA}. Its own `clip` has {self.clip.frames}"
            )
        slow = frames // ALPHA
        chosen = [index * (frames - 1) // max(slow - 1, 1) for index in range(slow)]
        return [clips[:, :, chosen], clips]

    def features(self, clips: Tensor) -> Features:
        slow_fast = self.pathways(clips)
        for block in self.net.blocks[:-2]:
            slow_fast = block(slow_fast)
        slow, fast = slow_fast  # (B, 2048, T / 4, H, W), (B, 256, T, H, W)
        feature_map = torch.cat([slow, functional.avg_pool3d(fast, (ALPHA, 1, 1))], dim=1)
        pooled = self.net.blocks[-2]([slow, fast]).flatten(1)
        return Features(
            logits=self.split_heads(_of_head(self.net.blocks[-1], pooled)),
            pooled=pooled,
            map=feature_map,
        )


class _PytorchvideoMViT(VideoModel):
    """MViT; pooled features are the class token after the last norm. It takes one size only."""

    def __init__(self, name: str, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module) -> None:
        super().__init__(name, "vit", clip, heads, net)
        self.pooled_channels = self.map_channels = self.net.norm_embed.normalized_shape[0]

    def features(self, clips: Tensor) -> Features:
        self.check_clip_size(clips)
        net = self.net  # the steps of MultiscaleVisionTransformers.forward, with the tokens kept
        tokens = net.cls_positional_encoding(net.patch_embed(clips))
        thw = net.cls_positional_encoding.patch_embed_shape
        for block in net.blocks:
            tokens, thw = block(tokens, thw)
        tokens = net.norm_embed(tokens)  # (B, 1 + T·H·W, C)
        return Features(
            logits=self.split_heads(net.head(tokens)),
            pooled=tokens[:, 0],
            map=tokens[:, 1:].transpose(1, 2).unflatten(2, [int(size) for size in thw]),
        )


def _of_head(head: Any, pooled: Tensor) -> Tensor:
    """Dropout and the last linear layer of a head."""
    dropped = pooled if head.dropout is None else head.dropout(pooled)
    logits: Tensor = head.proj(dropped)
    return logits


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


def _slow_r50(name: str, clip: ClipSpec, heads: Mapping[str, int], dropout: float) -> VideoModel:
    net = create_resnet(
        stem_conv_kernel_size=(1, 7, 7),
        head_pool_kernel_size=(8, 7, 7),
        model_depth=50,
        model_num_class=sum(heads.values()),
        dropout_rate=dropout,
        head_activation=None,
    )
    return _PytorchvideoSlow(name, clip, heads, net)


def _slowfast(depth: int, fusion_kernel: int) -> Builder:
    def build(name: str, clip: ClipSpec, heads: Mapping[str, int], dropout: float) -> VideoModel:
        net = create_slowfast(
            model_depth=depth,
            slowfast_fusion_conv_kernel_size=(fusion_kernel, 1, 1),
            model_num_class=sum(heads.values()),
            dropout_rate=dropout,
            head_activation=None,
        )
        return _PytorchvideoSlowFast(name, clip, heads, net)

    return build


def _mvit_base(name: str, clip: ClipSpec, heads: Mapping[str, int], dropout: float) -> VideoModel:
    net = create_multiscale_vision_transformers(
        **mvit_video_base_config,
        head_num_classes=sum(heads.values()),
        head_dropout_rate=dropout,
        head_activation=None,
    )
    return _PytorchvideoMViT(name, clip, heads, net)


# The published accuracies are of 30 views (MViT: 5) at the test crop: for X3D-M, Slow and SlowFast
# 256 pixels of a short side of 256. Here every clip has the crop that the network was trained with,
# X3D-XS and -S the one they were tested with (trained with 160).
PYTORCHVIDEO = {
    "pytorchvideo/x3d_xs": Entry(
        "cnn", ClipSpec(4, 12, 182), _x3d(2.0, 2.2), Published(0.6912, 3.79, 0.91, (4, 182))
    ),
    "pytorchvideo/x3d_s": Entry(
        "cnn", ClipSpec(13, 6, 182), _x3d(2.0, 2.2), Published(0.7333, 3.79, 2.96, (13, 182))
    ),
    "pytorchvideo/x3d_m": Entry(
        "cnn",
        ClipSpec(16, 5, 224, test_share=CROP_OF_RESIZE),
        _x3d(2.0, 2.2),
        Published(0.7594, 3.79, 6.72, (16, 256)),
    ),
    "pytorchvideo/x3d_l": Entry(
        "cnn",
        ClipSpec(16, 5, 312, test_share=312 / 356),
        _x3d(2.0, 5.0),
        Published(0.7744, 6.2, 18.37, (16, 312)),
    ),
    "pytorchvideo/x3d_tiny": Entry("cnn", ClipSpec(8, 6, 48), _x3d(1.0, 1.0, head_dim=512)),
    "pytorchvideo/x3d_nano": Entry("cnn", ClipSpec(8, 6, 40), _x3d(1.0, 0.5, 6, head_dim=256)),
    "pytorchvideo/slow_r50": Entry(
        "cnn",
        ClipSpec(8, 8, 224, test_share=CROP_OF_RESIZE),
        _slow_r50,
        Published(0.7458, 32.45, 54.52, (8, 256)),
    ),
    "pytorchvideo/slowfast_r50": Entry(
        "cnn",
        ClipSpec(32, 2, 224, test_share=CROP_OF_RESIZE),
        _slowfast(50, 7),
        Published(0.7694, 34.57, 65.71, (32, 256)),
    ),
    "pytorchvideo/slowfast_r101": Entry(
        "cnn",
        ClipSpec(32, 2, 224, test_share=CROP_OF_RESIZE),
        _slowfast(101, 5),
        Published(0.7790, 62.83, 127.20, (32, 256)),
    ),
    "pytorchvideo/mvit_base_16x4": Entry(
        "vit",
        ClipSpec(16, 4, 224, test_share=CROP_OF_RESIZE),
        _mvit_base,
        Published(0.789, 36.6, 70.5, (16, 224)),
    ),
}
