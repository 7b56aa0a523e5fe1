"""Names → video networks that all answer alike: logits, pooled features, last feature map.

The networks are the libraries' own, with their own parameter names, so published weights load.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.counting import count_flops, count_parameters
from pipeline.model_interface import (
    ClipSizeError,
    Entry,
    Family,
    Features,
    Published,
    VideoModel,
)
from pipeline.model_names import MODEL_NAMES, TIMM, UnknownModelError, check_model_name
from pipeline.pytorchvideo_models import PYTORCHVIDEO
from pipeline.timm_models import timm_entry
from pipeline.torchvision_models import TORCHVISION

__all__ = [
    "REGISTRY",
    "ClipSizeError",
    "Entry",
    "Family",
    "Features",
    "Published",
    "UnknownModelError",
    "VideoModel",
    "count_flops",
    "count_parameters",
    "create_model",
    "model_entry",
]

REGISTRY: dict[str, Entry] = {name: (TORCHVISION | PYTORCHVIDEO)[name] for name in MODEL_NAMES}
"""All networks of fixed name; beside them stands `timm/<any image model>`, see `timm_models`."""


def model_entry(name: str) -> Entry:
    """Look a name up.

    Raises:
        UnknownModelError: the name is unknown; the message lists the nearest names.
    """
    check_model_name(name)
    return timm_entry(name) if name.startswith(TIMM) else REGISTRY[name]


def create_model(
    name: str, num_classes: int | Mapping[str, int], *, dropout: float = 0.5
) -> VideoModel:
    """Build a network with random weights.

    Args:
        name: a name of the registry, such as `torchvision/mvit_v2_s` or `timm/resnet50`.
        num_classes: number of classes, or one number per head.
        dropout: before the last linear layer, in training.

    Raises:
        UnknownModelError: the name is unknown; the message lists the nearest names.
    """
    entry = model_entry(name)
    heads = num_classes if isinstance(num_classes, Mapping) else {"action": num_classes}
    return entry.build(name, entry.clip, heads, dropout)
