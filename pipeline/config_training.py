"""How networks are trained: the recipes of teachers and student, the parts of the method by name.

`config` has the sections that hold them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config_section import Above0, NonNegative, Positive, Section, Share

Weighting = Literal["datw", "datw_centred", "uniform", "entropy", "vit", "cnn"]
"""How the logits of the two teachers become one target; docs/method.md has the formulas."""


class Recipe(Section):
    """How a network is trained: AdamW, warm-up and decay along half a cosine each.

    Precision `bf16` runs the forward pass under bfloat16 autocast, `auto` does where a GPU computes
    in it. A batch is that of one update: all ranks' shares of it, in `accumulate` pieces each.
    """

    epochs: Positive
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Above0
    weight_decay: NonNegative
    warmup_share: Annotated[float, Field(gt=0, lt=1)]
    clip_norm: Above0
    label_smoothing: Share
    dropout: Annotated[float, Field(ge=0, lt=1)]
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    accumulate: Positive = 1  # forward and backward passes of an update, each over a piece
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None  # null keeps no average
    precise_bn: Annotated[int, Field(ge=0)] = 0  # batches to estimate the norms' statistics on
    compile: bool = False  # by torch.compile
    keep: Literal["last", "best"] = "last"  # which epoch's weights become the network's


class TeacherRecipe(Recipe):
    """How a teacher is trained; docs/teaching.md tells what each is good for."""

    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the rate, per block below the head
    decay_positions: bool = True  # weight decay on positional parameters of two dimensions or more
    mixup: NonNegative = 0.0  # α of Beta(α, α); 0 is off
    cutmix: NonNegative = 0.0


class StudentRecipe(Recipe):
    """How a student is trained; docs/training.md tells what each is good for."""

    sync_batchnorm: bool = False  # statistics over the batches of all GPUs


class Weights(Section):
    """λ of each term; a term at 0 is not computed.

    The method has the first three, the others are what it is compared with: decoupled KD in the
    place of `kd`, mimicry of the ViT's features, a residual whose φ is learned.
    """

    kd: NonNegative
    sdd: NonNegative
    rkd: NonNegative
    dkd: NonNegative = 0.0
    mimic: NonNegative = 0.0
    learned_sdd: NonNegative = 0.0
