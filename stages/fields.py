"""The arrays of a run's cache: which there are, and how each is compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cache import Field, codec_from_json
from pipeline.config import Run
from pipeline.config_file import ConfigError
from pipeline.models import VideoModel
from pipeline.samples import Samples
from stages.progress import console
from stages.rows import Networks
from stages.stored_clips import clip_field, clip_fields, format_of


def cache_fields(
    run: Run, samples: Samples, networks: Networks, stored: Mapping[str, Field] | None = None
) -> list[Field]:
    """The arrays that a run stores, in the cache's order.

    Args:
        run: the config.
        samples: for the heads.
        networks: all for which something is stored.
        stored: the fields of the cache if it stands already.

    Raises:
        pipeline.config.ConfigError: `extract.codecs` names another field.
        cache.CacheError: a codec does not suit its field's dtype.
    """
    fields = []
    for role, model in networks.teachers.by_role().items():
        fields += _outputs(role, model, samples)
    projection = run.extract.projection
    shape = (projection.dim, *projection.grid)
    fields.append(Field("residual", ("channel", "time", "height", "width"), shape, "float16"))
    fields += clip_fields(networks.students, stored or {}, run.extract.clip_format)
    for name, model in networks.added.items():
        fields.append(Field(f"{name}/status", (), (), "uint8"))
        fields.append(Field(f"{name}/input_digest", (), (), "uint64"))
        fields += _outputs(name, model, samples)
    return _with_codecs(run, fields)


def _outputs(name: str, model: VideoModel, samples: Samples) -> list[Field]:
    """Logits and pooled features; heads differ in size, so that xarray wants a name for each."""
    several = len(samples.heads) > 1
    logits = [
        Field(
            f"{name}/logits/{head}",
            (f"class_{head}" if several else "class",),
            (classes,),
            "float16",
        )
        for head, classes in samples.heads.items()
    ]
    return [*logits, Field(f"{name}/pooled", ("channel",), (model.pooled_channels,), "float16")]


def _with_codecs(run: Run, fields: Sequence[Field]) -> list[Field]:
    """The fields, compressed as the config says."""
    codecs = run.extract.codecs
    unknown = sorted(codecs.keys() - {field.name for field in fields})
    if unknown:
        raise ConfigError(
            f"extract.codecs names {', '.join(unknown)}; the fields of this cache are "
            f"{', '.join(field.name for field in fields)}"
        )
    return [
        replace(field, codec=codec_from_json(codecs[field.name].model_dump()))
        if field.name in codecs
        else field
        for field in fields
    ]


def note_codecs(out: Path, stored: Mapping[str, Field], wanted: Sequence[Field]) -> None:
    """Say where the cache keeps a codec that is not the config's: a lossless one is no identity."""
    for field in wanted:
        if field.name in stored and stored[field.name].codec != field.codec:
            console.print(
                f"{out}: {field.name} stays as it is ({stored[field.name].codec or 'no codec'}); "
                f"{field.codec or 'none'} of extract.codecs counts when a cache is made"
            )


def note_clip_format(
    out: Path, stored: Mapping[str, Field], run: Run, students: Sequence[str]
) -> None:
    """Say where the cache keeps clips in another format than the config's."""
    for student in students:
        field = stored.get(clip_field(student))
        found = format_of(field, student) if field else None
        if field and found and found != run.extract.clip_format:
            console.print(
                f"{out}: {field.name} stays as it is ({found}); extract.clip_format "
                f"({run.extract.clip_format}) counts when a student's clips are added"
            )
