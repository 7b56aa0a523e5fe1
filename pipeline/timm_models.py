"""Any image model of timm, frame by frame, its features averaged over time.

A frame's size, mean, std and crop are timm's own for the weights of that name; frames and stride (8
at 8, about two seconds) are ours, since no such model is published for video. timm resizes most
of them bicubic and antialiased; here all clips are resized alike, see `views.cut_clip`.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.counting import ShapesOnly
from pipeline.model_interface import Entry, Family, Features, VideoModel
from pipeline.model_names import TIMM, UnknownModelError
from pipeline.views import ClipSpec

FRAMES, STRIDE = 8, 8


class UnfitModelError(ValueError):
    """A model of timm has no last linear layer or no feature map; the message says which."""


class _TimmFrames(VideoModel):
    """An image model on every frame; pooled features are the mean over time of the frames' own.

    The last layer is linear, so its logits are the mean of the frames' logits. The map has one
    slice per frame. Models of patches take one size only, the others any; all any number of frames.
    """

    def __init__(
        self, name: str, clip: ClipSpec, heads: Mapping[str, int], net: nn.Module, dropout: float
    ) -> None:
        super().__init__(name, _family(net), clip, heads, net)
        classifier = self.net.get_classifier()
        if not isinstance(classifier, nn.Linear):
            raise UnfitModelError(
                f"{name} ends in {type(classifier).__name__}, not in one linear layer: its pooled "
                "features would mean nothing; choose another model of timm"
            )
        self.dropout = nn.Dropout(dropout)
        self.pooled_channels = classifier.in_features
        self.map_channels = self.net.num_features

    def features(self, clips: Tensor) -> Features:
        batch, _, frames = clips.shape[:3]
        if hasattr(self.net, "pos_embed") or hasattr(self.net, "patch_embed"):
            clip = self.clip
            self.check_clip_size(clips[:, :, :1].expand(-1, -1, clip.frames, -1, -1))
        images = clips.transpose(1, 2).flatten(0, 1)  # (B·T, 3, H, W)
        made = self.net.forward_features(images)
        of_frames = self.net.forward_head(made, pre_logits=True)  # (B·T, C_pooled)
        pooled = of_frames.reshape(batch, frames, -1).mean(dim=1)
        logits = self.net.get_classifier()(self.dropout(pooled))
        maps = self._as_map(made)
        maps = maps.reshape(batch, frames, *maps.shape[1:]).transpose(1, 2)
        return Features(logits=self.split_heads(logits), pooled=pooled, map=maps)

    def _as_map(self, made: Any) -> Tensor:
        """What `forward_features` answers as (B·T, C, H, W), without class and register tokens."""
        if isinstance(made, Tensor) and made.ndim == 4:
            channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
            return made.permute(0, 3, 1, 2) if channels_last else made
        if isinstance(made, Tensor) and made.ndim == 3:
            tokens = made[:, getattr(self.net, "num_prefix_tokens", 0) :]
            side = math.isqrt(int(tokens.shape[1]))
            if side * side == int(tokens.shape[1]):
                return tokens.transpose(1, 2).reshape(len(tokens), -1, side, side)
        shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise UnfitModelError(
            f"{self.name} answers features of {shape}, neither a map nor a square of tokens; "
            "choose another model of timm"
        )


def _family(net: nn.Module) -> Family:
    """`vit` where some module of it makes queries, keys and values; MLP mixers count as `cnn`."""
    signs = ("qkv", "q_proj", "kv", "in_proj_weight")
    attends = any(hasattr(module, sign) for module in net.modules() for sign in signs)
    return "vit" if attends else "cnn"


def _build(name: str, clip: ClipSpec, heads: Mapping[str, int], dropout: float) -> VideoModel:
    import timm  # noqa: PLC0415 (seconds to import, seldom needed)

    net = timm.create_model(
        name.removeprefix(TIMM), pretrained=False, num_classes=sum(heads.values())
    )
    return _TimmFrames(name, clip, heads, net, dropout)


@functools.cache
def timm_entry(name: str) -> Entry:
    """The registry's line for `timm/<model>` or `timm/<model>.<tag of its weights>`.

    Raises:
        UnknownModelError: timm has no such model or tag; the message lists its nearest names.
    """
    import timm  # noqa: PLC0415

    wanted = name.removeprefix(TIMM)
    if wanted not in timm.list_models() and wanted not in timm.list_models(include_tags=True):
        known = timm.list_models(include_tags="." in wanted)
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.3) or known[:3]
        raise UnknownModelError(
            f"unknown model {name!r}; the nearest names are "
            + ", ".join(f"{TIMM}{one}" for one in near)
        )
    published: Any = timm.models.get_pretrained_cfg(wanted, allow_unregistered=True)
    _, height, width = published.input_size if published else (3, 224, 224)
    clip = ClipSpec(
        FRAMES,
        STRIDE,
        min(height, width),
        mean=tuple(published.mean) if published else (0.485, 0.456, 0.406),
        std=tuple(published.std) if published else (0.229, 0.224, 0.225),
        test_share=min(1.0, published.crop_pct) if published else 0.875,
    )
    with ShapesOnly():
        family = _build(name, clip, {"action": 2}, 0.0).family
    return Entry(family, clip, _build)
