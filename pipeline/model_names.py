"""The names of the registry, without torch: configs are checked before it is imported."""

from __future__ import annotations

import difflib
import re

MODEL_NAMES = (
    "torchvision/mvit_v2_s",
    "torchvision/mvit_v1_b",
    "torchvision/mvit_tiny",
    "torchvision/swin3d_t",
    "torchvision/swin3d_s",
    "torchvision/swin3d_b",
    "torchvision/s3d",
    "torchvision/r3d_18",
    "torchvision/mc3_18",
    "torchvision/r2plus1d_18",
    "pytorchvideo/x3d_xs",
    "pytorchvideo/x3d_s",
    "pytorchvideo/x3d_m",
    "pytorchvideo/x3d_l",
    "pytorchvideo/x3d_tiny",
    "pytorchvideo/x3d_nano",
    "pytorchvideo/slow_r50",
    "pytorchvideo/slowfast_r50",
    "pytorchvideo/slowfast_r101",
    "pytorchvideo/mvit_base_16x4",
)
TIMM = "timm/"  # before any image model of timm; which there are only timm knows
_TIMM_NAME = re.compile(r"timm/[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")


class UnknownModelError(ValueError):
    """A name is not in the registry; the message lists the nearest names."""


def nearest_names(name: str) -> str:
    """The names that look like a wrong one, or all."""
    wanted = name.lower()
    if wanted == TIMM:
        return f"{TIMM}<an image model>"
    short = {known.partition("/")[2]: known for known in MODEL_NAMES}
    near = difflib.get_close_matches(wanted, [*MODEL_NAMES, *short], n=3, cutoff=0.5)
    near = list(dict.fromkeys(short.get(each, each) for each in near))
    return ", ".join(near or [*sorted(MODEL_NAMES), f"{TIMM}<an image model>"])


def is_model_name(name: str) -> bool:
    """Whether a name is in the registry, or could be one of timm's: timm itself is not asked."""
    return name in MODEL_NAMES or _TIMM_NAME.fullmatch(name) is not None


def check_model_name(name: str) -> str:
    """Return a name of the registry as it is; of `timm/<name>` only the form is checked.

    Raises:
        UnknownModelError: the name is unknown; the message lists the nearest names.
    """
    if not is_model_name(name):
        raise UnknownModelError(
            f"unknown model {name!r}; the nearest names are {nearest_names(name)}"
        )
    return name
