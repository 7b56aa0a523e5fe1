"""The section `prepare` of a config: where the samples come from, one class per `source`.

A class knows the splits that its source makes, so that a config which asks for another one is
refused before anything is read; of a folder they are known only after a look at it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from pipeline.config_section import Name, Positive, Section, Seed

Place = Annotated[str, Field(min_length=1)]


class PrepareFigures(Section):
    """The embedded datasets: little people, rendered below `root`.

    `set` says which: docs/figures-hard.md tells of `hard`.
    """

    source: Literal["figures"]
    set: Literal["demo", "hard"] = "demo"
    root: Place
    seed: Seed
    splits: dict[Name, Positive]

    @field_validator("splits")
    @classmethod
    def _has_train(cls, splits: dict[str, int]) -> dict[str, int]:
        if "train" not in splits:
            raise ValueError("a split named 'train'")
        return splits


class PrepareK400(Section):
    """Kinetics-400; `annotations` is the folder of its CSVs, looked for in `root` by default."""

    source: Literal["k400"]
    root: Place
    annotations: Place | None = None
    split_names: ClassVar = ("train", "val", "test")


class PrepareHmdb51(Section):
    """HMDB51, one of its three official splits.

    `annotations` is the folder of their files, looked for in and beside `root` by default.
    """

    source: Literal["hmdb51"]
    root: Place
    official_split: Literal[1, 2, 3]
    annotations: Place | None = None
    split_names: ClassVar = ("train", "test")


class PrepareEpic100(Section):
    """EPIC-KITCHENS-100; where both are there, its videos or its frames are read.

    `annotations` is the folder of its CSVs, looked for in and beside `root` by default.
    """

    source: Literal["epic100"]
    root: Place
    annotations: Place | None = None
    prefer: Literal["videos", "frames"] = "videos"
    split_names: ClassVar = ("train", "validation", "test")


class PrepareFolder(Section):
    """Any videos: `<split>/<class>/<video>`, or as a CSV lists them.

    `annotations` is the CSV, relative to `root`; by default those that lie in it.
    """

    source: Literal["folder"]
    root: Place
    annotations: Place | None = None


Prepare = Annotated[
    PrepareFigures | PrepareK400 | PrepareHmdb51 | PrepareEpic100 | PrepareFolder,
    Field(discriminator="source"),
]
KNOWN_SPLITS: dict[str, tuple[str, ...]] = {
    "k400": PrepareK400.split_names,
    "hmdb51": PrepareHmdb51.split_names,
    "epic100": PrepareEpic100.split_names,
}
