"""The registry's networks from torchvision, with its own builders and parameter names.

Clips and figures are those of torchvision's weight enums (`meta` and `transforms` of
`KINETICS400_V1`, https://docs.pytorch.org/vision/stable/models.html#video-classification): a
`frame_rate` of 15 is a stride of 2 at 30 fps. The ResNets and S3D were evaluated on frames squeezed
to 171x128 and 256x256 pixels; here the aspect is kept, as everywhere, and only the share of the
short side (112 of 128, 224 of 256) is theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import video
from torchvision.models.video.mvit import MSBlockConfig, MViT

from pipeline.model_interface import (
    CROP_OF_RESIZE,
    Builder,
    Entry,
    Features,
    Published,
    VideoModel,
)
from pipeline.views import ClipSpec

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
KINETICS = {"mean": (0.43216, 0.394666, 0.37645), "std": (0.22803, 0.22145, 0.216989)}


class _TorchvisionMViT(VideoModel):
    """MViT; pooled features are the class token after the last norm. It takes one size only."""

    def __init__(self, name: str, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module) -> None:
        super().__init__(name, "vit", clip, heads, net)
        self.pooled_channels = self.map_channels = self.net.norm.normalized_shape[0]

    def features(self, clips: Tensor) -> Features:
        self.check_clip_size(clips)
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

    def forward(self, clips: Tensor) -> Tensor:
        self.check_clip_size(clips)
        logits: Tensor = self.net(clips)
        return logits


class _TorchvisionSwin(VideoModel):
    """Swin3D; pooled features are the mean of its normed tokens. It takes other sizes too."""

    def __init__(
        self, name: str, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module, dropout: float
    ) -> None:
        super().__init__(name, "vit", clip, heads, net)
        self.dropout = nn.Dropout(dropout)  # torchvision's has none before its head
        self.pooled_channels = self.map_channels = self.net.num_features

    def features(self, clips: Tensor) -> Features:
        net = self.net
        tokens = net.norm(net.features(net.pos_drop(net.patch_embed(clips))))  # (B, T, H, W, C)
        feature_map = tokens.permute(0, 4, 1, 2, 3)
        pooled = net.avgpool(feature_map).flatten(1)
        return Features(
            logits=self.split_heads(net.head(self.dropout(pooled))), pooled=pooled, map=feature_map
        )


class _TorchvisionResNet(VideoModel):
    """R3D, MC3 and R(2+1)D; pooled features are the mean of the last map."""

    def __init__(
        self, name: str, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module, dropout: float
    ) -> None:
        super().__init__(name, "cnn", clip, heads, net)
        self.dropout = nn.Dropout(dropout)  # torchvision's have none
        self.pooled_channels = self.map_channels = self.net.fc.in_features

    def features(self, clips: Tensor) -> Features:
        net = self.net
        feature_map = net.stem(clips)
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            feature_map = layer(feature_map)
        pooled = net.avgpool(feature_map).flatten(1)
        return Features(
            logits=self.split_heads(net.fc(self.dropout(pooled))), pooled=pooled, map=feature_map
        )


class _Window(nn.Module):
    """Average pooling at stride 1 whose window shrinks to maps that are smaller than it."""

    def __init__(self, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, feature_map: Tensor) -> Tensor:
        sizes = zip(self.kernel, feature_map.shape[2:], strict=True)
        kernel = [min(wanted, int(there)) for wanted, there in sizes]
        return functional.avg_pool3d(feature_map, kernel, stride=1)


class _TorchvisionS3D(VideoModel):
    """S3D; its head averages windows of 2x7x7, then what it says of each.

    The head is linear, so the pooled features are the mean over the windows; this is not the mean
    of the map: in time, the first and last frame count half.
    """

    def __init__(self, name: str, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module) -> None:
        super().__init__(name, "cnn", clip, heads, net)
        self.net.avgpool = _Window((2, 7, 7))
        self.pooled_channels = self.map_channels = self.net.classifier[1].in_channels

    def features(self, clips: Tensor) -> Features:
        net = self.net
        feature_map = net.features(clips)
        windows = net.avgpool(feature_map)
        return Features(
            logits=self.split_heads(net.classifier(windows).mean(dim=(2, 3, 4))),
            pooled=windows.mean(dim=(2, 3, 4)),
            map=feature_map,
        )

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.net(clips)
        return logits


def _mvit(library: Callable[..., nn.Module]) -> Builder:
    def build(name: str, clip: ClipSpec, heads: Mapping[str, int], dropout: float) -> VideoModel:
        net = library(weights=None, num_classes=sum(heads.values()), dropout=dropout)
        return _TorchvisionMViT(name, clip, heads, net)

    return build


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


def _with_dropout(
    model: type[_TorchvisionSwin] | type[_TorchvisionResNet], library: Callable[..., nn.Module]
) -> Builder:
    def build(name: str, clip: ClipSpec, heads: Mapping[str, int], dropout: float) -> VideoModel:
        net = library(weights=None, num_classes=sum(heads.values()))
        return model(name, clip, heads, net, dropout)

    return build


def _s3d(name: str, clip: ClipSpec, heads: Mapping[str, int], dropout: float) -> VideoModel:
    net = video.s3d(weights=None, num_classes=sum(heads.values()), dropout=dropout)
    return _TorchvisionS3D(name, clip, heads, net)


def _clip(frames: int, stride: int, size: int, **normalisation: Any) -> ClipSpec:
    return ClipSpec(frames, stride, size, test_share=CROP_OF_RESIZE, **normalisation)


def _swin(library: Callable[..., nn.Module], published: Published) -> Entry:
    clip = _clip(32, 2, 224, **IMAGENET)
    return Entry("vit", clip, _with_dropout(_TorchvisionSwin, library), published)


def _resnet(library: Callable[..., nn.Module], published: Published) -> Entry:
    clip = _clip(16, 2, 112, **KINETICS)
    return Entry("cnn", clip, _with_dropout(_TorchvisionResNet, library), published)


# torchvision publishes the FLOPs of 16 frames for all of them, whatever clip the accuracy is of.
TORCHVISION = {
    "torchvision/mvit_v2_s": Entry(
        "vit",
        _clip(16, 4, 224),
        _mvit(video.mvit_v2_s),
        Published(0.80757, 34.537744, 64.224, (16, 224)),
    ),
    "torchvision/mvit_v1_b": Entry(
        "vit",
        _clip(16, 4, 224),
        _mvit(video.mvit_v1_b),
        Published(0.78477, 36.610672, 70.599, (16, 224)),
    ),
    "torchvision/mvit_tiny": Entry("vit", ClipSpec(8, 6, 48), _mvit_tiny),
    "torchvision/swin3d_t": _swin(video.swin3d_t, Published(0.77715, 28.158070, 43.882, (16, 224))),
    "torchvision/swin3d_s": _swin(video.swin3d_s, Published(0.79521, 49.816678, 82.841, (16, 224))),
    "torchvision/swin3d_b": _swin(
        video.swin3d_b, Published(0.79427, 88.048984, 140.667, (16, 224))
    ),
    "torchvision/s3d": Entry(
        "cnn",
        _clip(128, 2, 224, **KINETICS),
        _s3d,
        Published(0.68368, 8.320048, 17.979, (16, 224)),
    ),
    "torchvision/r3d_18": _resnet(video.r3d_18, Published(0.632, 33.371472, 40.697, (16, 112))),
    "torchvision/mc3_18": _resnet(video.mc3_18, Published(0.6396, 11.695440, 43.343, (16, 112))),
    "torchvision/r2plus1d_18": _resnet(
        video.r2plus1d_18, Published(0.67463, 31.505325, 40.519, (16, 112))
    ),
}
