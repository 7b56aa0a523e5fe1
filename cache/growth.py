"""The growth of a cache: more views, samples, fields, teachers; no file of a row is touched.

Only metadata change, by `manifest.write_files`: the new rows themselves come with commits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import zarr
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore

from cache.codecs import lossy_codecs, quiet_zarr
from cache.create import check_fields, create_field, encode_samples
from cache.layout import METADATA, Layout, samples_file
from cache.manifest import write_files
from cache.metadata import ATTRIBUTE, check_extent
from cache.schema import STATUS_FIELD, CacheError, Field, check_samples, status_name
from cache.tables import read_samples


def add_views(layout: Layout, count: int) -> None:
    """Make room for `count` more views; see `CacheWriter.add_views`."""
    if count < 1:
        raise CacheError(f"{count} views to add, expected at least 1")
    grown = replace(layout, num_views=layout.num_views + count)
    check_extent(grown, grown.axis_samples)
    # `status` last: it says how many views there are, so an interruption leaves the old number.
    fields = sorted(layout.fields.values(), key=lambda field: field == STATUS_FIELD)
    names = [f"{field.name}/{METADATA}" for field in fields]
    write_files(layout.path, {name: _resized(layout, name, 1, grown.num_views) for name in names})


def add_samples(layout: Layout, samples: pa.Table) -> None:
    """Make room for more samples; see `CacheWriter.add_samples`."""
    known = read_samples(layout)
    if samples.schema != known.schema:
        raise CacheError(
            f"the samples to add have the columns {_columns(samples)}; those of {layout.path} have "
            f"{_columns(known)}"
        )
    samples = samples.replace_schema_metadata(known.schema.metadata)
    check_samples(samples)
    check_samples(pa.concat_tables([known, samples]))
    grown = replace(layout, parts=(*layout.parts, len(samples)))
    check_extent(grown, grown.axis_samples)
    names = [f"{name}/{METADATA}" for name in layout.fields]
    contents = {samples_file(len(layout.parts)): encode_samples(samples)}
    contents |= {name: _resized(layout, name, 0, grown.axis_samples) for name in names}
    write_files(layout.path, contents | _root(layout, parts=list(grown.parts)))


def add_fields(
    layout: Layout, fields: Sequence[Field], teachers: Mapping[str, Mapping[str, Any]]
) -> None:
    """Make room for more fields; see `CacheWriter.add_fields`."""
    every = [*layout.fields.values(), *fields]
    check_fields(every)
    names = {field.name for field in every}
    added = dict(layout.added)
    for teacher, about in teachers.items():
        its = [field for field in fields if field.name.startswith(f"{teacher}/")]
        if teacher in _groups(layout) or f"{teacher}/{STATUS_FIELD.name}" not in names:
            raise CacheError(
                f"teacher {teacher!r} cannot be added to {layout.path}: its fields must be new, "
                f"and {teacher}/{STATUS_FIELD.name} one of them"
            )
        lossy = lossy_codecs(its)
        added[teacher] = {**about, "codecs": lossy} if lossy else dict(about)
    for field in fields:
        of_teacher = field.name.partition("/")[0] in teachers
        if not of_teacher and (status_name(field.name, names) != STATUS_FIELD.name):
            raise CacheError(f"field {field.name!r} belongs to no teacher that is being added")
        if not of_teacher and lossy_codecs([field]):
            raise CacheError(
                f"field {field.name!r} cannot be added with {field.codec}: a lossy codec is part "
                "of the identity, which is fixed"
            )
    changes = {"fields": [field.name for field in every]} | ({"added": added} if added else {})
    write_files(layout.path, _new_arrays(layout, fields) | _root(layout, **changes))


def _groups(layout: Layout) -> set[str]:
    return {name.partition("/")[0] for name in layout.fields} | layout.added.keys()


def _columns(table: pa.Table) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in table.schema)


def _new_arrays(layout: Layout, fields: Sequence[Field]) -> dict[str, bytes]:
    """The `zarr.json` of empty arrays and of the groups around them, as zarr writes them."""
    made: dict[str, Buffer] = {}
    root = zarr.create_group(MemoryStore(made), zarr_format=3)
    shape = (layout.axis_samples, layout.num_views, layout.chunk_samples)
    with quiet_zarr():
        for field in fields:
            create_field(root, field, *shape)
    return {
        name: content.to_bytes()
        for name, content in sorted(made.items())
        if not (layout.path / name).exists()
    }


def _resized(layout: Layout, name: str, axis: int, size: int) -> bytes:
    """An array's metadata with another size of an axis; zarr's `resize` does no more."""
    document = json.loads((layout.path / name).read_bytes())
    document["shape"][axis] = size
    return _encode(document)


def _root(layout: Layout, **changes: object) -> dict[str, bytes]:
    """The root's metadata with other values of our attribute."""
    document = json.loads((layout.path / METADATA).read_bytes())
    document["attributes"][ATTRIBUTE].update(changes)
    return {METADATA: _encode(document)}


def _encode(document: object) -> bytes:
    return json.dumps(document, indent=2).encode()
