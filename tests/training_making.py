"""A small student, recipes and batches for the tests of the training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.branch import StructureDiscrepancyBranch
from pipeline.config_training import Recipe, Weights
from pipeline.learner import Learner
from pipeline.models import VideoModel, create_model
from pipeline.objective import Batch, TeacherRows

NANO = "pytorchvideo/x3d_nano"
HEADS = {"verb": 5, "noun": 3}
ALL = Weights(kd=0.7, sdd=0.3, rkd=0.2)
WITHOUT_RKD = Weights(kd=0.7, sdd=0.3, rkd=0.0)  # every term of which is a mean over samples
RESIDUAL = (6, 4, 2, 2)


def make_recipe(**changes: Any) -> Recipe:
    """A recipe with some values changed."""
    values = {
        "epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "warmup_share": 0.1,
        "clip_norm": 1.0,
        "label_smoothing": 0.0,
        "dropout": 0.0,
    }
    return Recipe.model_validate(values | changes)


def make_network(seed: int = 0) -> tuple[VideoModel, StructureDiscrepancyBranch]:
    """A student without dropout and its branch."""
    torch.manual_seed(seed)
    model = create_model(NANO, HEADS, dropout=0.0)
    return model, StructureDiscrepancyBranch(model.map_channels, RESIDUAL[0], RESIDUAL[1:], 8)


def learner_of(model: VideoModel, branch: nn.Module | None = None) -> Learner:
    """What learns: a network, and its branch if it has one."""
    return Learner(model, {} if branch is None else {"sdd": branch})


def make_batch(count: int = 4, seed: int = 1) -> Batch:
    """Random clips, labels and cached rows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return 2 * torch.randn(count, *shape, generator=generator)

    return Batch(
        names=[f"clip-{row}" for row in range(count)],
        clips=torch.randint(256, (count, 8, 40, 40, 3), dtype=torch.uint8, generator=generator),
        labels={head: torch.arange(count) % k for head, k in HEADS.items()},
        teachers=TeacherRows(
            vit_logits={head: normal(k) for head, k in HEADS.items()},
            cnn_logits={head: normal(k) for head, k in HEADS.items()},
            vit_pooled=normal(7),
            residual=normal(*RESIDUAL),
        ),
    )
