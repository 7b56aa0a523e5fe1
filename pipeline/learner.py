"""What learns: the student, and the parts that stand beside it in training only.

One module, so that one forward pass, one optimiser and one wrapper for several GPUs see it all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.branch import StructureDiscrepancyBranch
from pipeline.config_training import Weights
from pipeline.mixing import Mix, mix_clips
from pipeline.models import Features, VideoModel
from pipeline.views import normalise


class Answer(NamedTuple):
    """What one forward pass gives.

    Attributes:
        student: its outputs.
        predicted: by the name of a term, what its part predicts of the teachers.
        target: (B, D, 1, 1, 1), the residual of a learned φ; None without it.
    """

    student: Features
    predicted: dict[str, Tensor]
    target: Tensor | None = None


class Sizes(NamedTuple):
    """Of the teachers' cached outputs, as far as parts of a learner depend on them.

    Attributes:
        vit_pooled: channels.
        cnn_pooled: channels.
        residual: (D, T', H', W').
    """

    vit_pooled: int = 0
    cnn_pooled: int = 0
    residual: tuple[int, int, int, int] = (1, 1, 1, 1)


class LearnedResidual(nn.Module):
    """φ as two linear maps that are trained with the student, beside a branch that predicts r.

    r = φ_V(f_V) - φ_C(f_C) of the pooled features, which are what a cache holds of both. Nothing
    keeps r from shrinking to 0: this is what the fixed φ of `projection` is compared with.
    """

    def __init__(self, map_channels: int, sizes: Sizes) -> None:
        super().__init__()
        dim = sizes.residual[0]
        self.vit = nn.Linear(sizes.vit_pooled, dim)
        self.cnn = nn.Linear(sizes.cnn_pooled, dim)
        self.branch = StructureDiscrepancyBranch(map_channels, dim, (1, 1, 1))

    def target(self, vit_pooled: Tensor, cnn_pooled: Tensor) -> Tensor:
        """The residual, (B, D, 1, 1, 1), of features (B, C) each."""
        residual: Tensor = self.vit(vit_pooled) - self.cnn(cnn_pooled)
        return residual[:, :, None, None, None]

    def forward(self, feature_map: Tensor) -> Tensor:
        """The student's prediction of it, (B, D, 1, 1, 1)."""
        predicted: Tensor = self.branch(feature_map)
        return predicted


class Learner(nn.Module):
    """The student and its parts; `make_learner` makes one.

    Attributes:
        model: the student; it is saved without the rest.
        parts: by the name of a term of the loss.
    """

    def __init__(self, model: VideoModel, parts: Mapping[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.model = model
        self.parts = nn.ModuleDict(parts or {})

    def forward(
        self,
        clips: Tensor,
        mix: Mix | None = None,
        pooled: tuple[Tensor, Tensor] | None = None,
        *,
        bf16: bool = False,
    ) -> Answer:
        """Everything that the loss needs of one batch, in float32.

        Args:
            clips: (B, T, H, W, 3) uint8.
            mix: how they are mixed with the batch in reverse.
            pooled: the ViT's and the CNN's cached features (B, C), for a learned φ.
            bf16: the student runs under autocast; its parts never do.
        """
        clips = normalise(clips, self.model.clip)  # (B, 3, T, H, W)
        if mix is not None:
            clips = mix_clips(clips, mix)
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=bf16):
            student = self.model.features(clips.contiguous(memory_format=torch.channels_last_3d))
        if bf16:
            student = student.float32()
        predicted = {
            name: part(student.pooled if name == "mimic" else student.map)
            for name, part in self.parts.items()
        }
        target = None
        if pooled is not None and "learned_sdd" in self.parts:
            learned: Any = self.parts["learned_sdd"]
            target = learned.target(*pooled)
        return Answer(student, predicted, target)


def make_learner(model: VideoModel, weights: Weights, sizes: Sizes) -> Learner:
    """A student with the parts that the terms of a loss need.

    Args:
        model: the student.
        weights: a term at 0 has no part.
        sizes: of the cached outputs.
    """
    parts: dict[str, nn.Module] = {}
    if weights.sdd > 0:
        dim, frames, height, width = sizes.residual
        grid = frames, height, width
        parts["sdd"] = StructureDiscrepancyBranch(model.map_channels, dim, grid)
    if weights.mimic > 0:
        parts["mimic"] = nn.Linear(model.pooled_channels, sizes.vit_pooled)
    if weights.learned_sdd > 0:
        parts["learned_sdd"] = LearnedResidual(model.map_channels, sizes)
    return Learner(model, parts)
