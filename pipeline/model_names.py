"""The names of the registry, without torch: configs are checked before it is imported."""

from __future__ import annotations

import difflib

MODEL_NAMES = (
    "torchvision/mvit_v2_s",
    "torchvision/mvit_tiny",
    "pytorchvideo/x3d_xs",
    "pytorchvideo/x3d_s",
    "pytorchvideo/x3d_m",
    "pytorchvideo/x3d_tiny",
    "pytorchvideo/x3d_nano",
)


class UnknownModelError(ValueError):
    """A name is not in the registry; the message lists the nearest names."""


def nearest_names(name: str) -> str:
    """The names that look like a wrong one, or all."""
    near = difflib.get_close_matches(name, MODEL_NAMES, n=3, cutoff=0.3)
    return ", ".join(near or sorted(MODEL_NAMES))


def check_model_name(name: str) -> str:
    """Return a name of the registry as it is.

    Raises:
        UnknownModelError: the name is unknown; the message lists the nearest names.
    """
    if name not in MODEL_NAMES:
        raise UnknownModelError(
            f"unknown model {name!r}; the nearest names are {nearest_names(name)}"
        )
    return name
