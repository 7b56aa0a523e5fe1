"""The typed run: what a config may say. Sections have the names of the stages that read them.

`config_file` reads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipeline.config_prepare import Prepare
from pipeline.config_section import Above0, Name, NonNegative, Positive, Section, Seed, Share
from pipeline.config_training import StudentRecipe, TeacherRecipe, Weighting, Weights
from pipeline.model_names import is_model_name, nearest_names


def _known(model: str) -> str:
    if not is_model_name(model):
        raise ValueError(f"the name of a model; the nearest are {nearest_names(model)}")
    return model


ModelName = Annotated[str, AfterValidator(_known)]


def _ordered(scale: tuple[float, float]) -> tuple[float, float]:
    if scale[0] > scale[1]:
        raise ValueError("least area before greatest area")
    return scale


# YAML has lists only: the one conversion that is allowed.
Scale = Annotated[
    tuple[Above0, Annotated[float, Field(gt=0, le=1)]],
    Field(strict=False),
    AfterValidator(_ordered),
]
Precision = Literal["fp32", "bf16"]
ClipFormat = Literal["raw", "jpeg"]
Pair = Annotated[tuple[str, str], Field(strict=False)]
Grid = Annotated[tuple[Positive, Positive, Positive], Field(strict=False)]


class Teacher(Section):
    """One teacher: its architecture, its weights, and the recipe that `teach --train` follows.

    Weights are `published` or a file. Training begins with those of `start`, at random by default,
    and ends with `weights`; with `new_head` it begins with a new last layer, for other classes.
    """

    model: ModelName
    weights: Annotated[str, Field(min_length=1)]
    start: Annotated[str, Field(min_length=1)] | None = None
    new_head: bool = False
    train: TeacherRecipe


class Teach(Section):
    """The two teachers, and what they are trained on: a pool, or splits of the samples table."""

    seed: Seed
    pool: Positive | None = None  # so many videos rendered for it, of the source `figures` only
    splits: Annotated[list[str], Field(min_length=1)] | None = None
    validation: str | None = None  # the split that is scored after each epoch
    scale: Scale
    vit: Teacher
    cnn: Teacher


class AddedTeacher(Section):
    """A teacher beside the two: the cache stores its logits and pooled features too."""

    model: ModelName
    weights: Annotated[str, Field(min_length=1)]


class Views(Section):
    """The view rule; `flip` never where left and right are classes."""

    count: Positive
    seed: Seed
    scale: Scale
    span_sec: NonNegative
    flip: bool


class ProjectionConfig(Section):
    """φ: how the teachers' feature maps become the residual."""

    kind: Literal["aligned", "pca", "random", "identity", "vit"]
    dim: Positive
    grid: Grid
    ridge: NonNegative
    samples: Positive
    seed: Seed


class BloscZstd(Section):
    """Zstd behind a bitshuffle: nothing is lost."""

    codec: Literal["blosc_zstd"]
    lossy: ClassVar[bool] = False


class BitRound(Section):
    """Floats rounded to so many bits of mantissa, then blosc_zstd."""

    codec: Literal["bitround"]
    keepbits: Positive
    lossy: ClassVar[bool] = True


class Fixed8(Section):
    """Floats as 256 even steps from low to high, then blosc_zstd; rows beyond them fail."""

    codec: Literal["fixed8"]
    low: float
    high: float
    lossy: ClassVar[bool] = True

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError("low below high")
        return self


Codec = Annotated[BloscZstd | BitRound | Fixed8, Field(discriminator="codec")]


# What the names of a cache's own fields and files begin with.
_FIELD_GROUPS = {
    *("vit", "cnn", "residual", "clip", "status", "input_digest", "views"),
    *("commits", "projection"),
}


class Gate(Section):
    """Before a long extraction the teachers are scored on so many labelled videos; 0 scores none.

    Far below what was published or measured of them is an error, unless `enforce` is false.
    """

    samples: Annotated[int, Field(ge=0)] = 256
    enforce: bool = True


class Extract(Section):
    """Stage one: which splits, which views, what is stored, compressed or (by default) not.

    With precision `bf16` the teachers run under bfloat16 autocast, on whatever device: it decides
    the values of rows a little, so it is part of a cache's fingerprint.
    """

    splits: Annotated[list[str], Field(min_length=1)]
    views: Views
    projection: ProjectionConfig
    clips: list[ModelName]
    clip_format: ClipFormat = "raw"  # of clips that a cache does not have yet
    chunk_samples: Positive
    max_failed_share: Share
    precision: Precision = "fp32"
    gate: Gate = Gate()
    codecs: dict[str, Codec] = Field(default_factory=dict)  # by the field's name, as `residual`
    # By the name that their fields begin with.
    added: dict[Name, AddedTeacher] = Field(default_factory=dict)

    @field_validator("added")
    @classmethod
    def _no_taken_names(cls, added: dict[str, AddedTeacher]) -> dict[str, AddedTeacher]:
        taken = sorted(_FIELD_GROUPS & added.keys())
        if taken:
            raise ValueError(f"names other than {', '.join(sorted(_FIELD_GROUPS))}")
        return added


class Distill(Section):
    """Stage two: the student, its recipe, the method, and how much of the cache."""

    student: ModelName
    seed: Seed
    train: StudentRecipe
    weights: Weights
    weighting: Weighting = "datw"
    temperature: Above0
    dkd_beta: NonNegative = 8.0  # of DKD's part over the other classes, beside 1 of the label's
    teachers: Pair = ("vit", "cnn")  # the pair that is weighed, ViT's place first
    splits: list[str] = Field(default_factory=lambda: ["train"], min_length=1)
    validation: str | None = None  # the split that is scored after each epoch
    views: Positive | None = None  # the first so many; all that `extract` was asked for by default
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the samples, in the cache's order


class Evaluate(Section):
    """Which split is scored, and in how many views: docs/evaluation.md tells the protocols."""

    split: str
    protocol: Literal["centre", "5x1", "10x1", "10x3"] = "centre"


class Export(Section):
    """The 8-bit model: how many clips of `distill.splits` calibrate it, what top-1 it may lose."""

    calibration: Positive = 128
    max_loss: NonNegative = 1.0  # points


class Run(Section):
    """One run: everything that the stages need to know.

    `name` is the config file's own: outputs are named by it, so that two runs of one dataset, such
    as two pairs of teachers, stand side by side.
    """

    name: Name
    dataset: Name
    prepare: Prepare
    teach: Teach
    extract: Extract
    distill: Distill
    evaluate: Evaluate
    export: Export = Export()

    @property
    def distill_views(self) -> int:
        """How many views of each sample `distill` trains on, the first ones."""
        return self.distill.views or self.extract.views.count

    @property
    def teachers(self) -> dict[str, Teacher | AddedTeacher]:
        """All teachers by name: `vit`, `cnn` and those of `extract.added`."""
        return {"vit": self.teach.vit, "cnn": self.teach.cnn, **self.extract.added}

    @property
    def outputs(self) -> Path:
        """Where the stages write."""
        return Path("outputs") / self.name

    @property
    def samples_path(self) -> Path:
        """The samples table that `prepare` writes."""
        return self.outputs / "samples.parquet"

    @property
    def subsets_path(self) -> Path:
        """Which samples are in which subset, as `prepare` writes it."""
        return self.outputs / "subsets.parquet"

    @property
    def cache_path(self) -> Path:
        """The cache that `extract` makes."""
        return self.outputs / "cache"
