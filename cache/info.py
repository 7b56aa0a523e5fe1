"""What a cache tells about itself, for `dualkd-cache info` and for reports."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from cache.address import is_url
from cache.commits import count_statuses
from cache.reader import open_cache
from cache.schema import FORMAT_VERSION, STATUS_FIELD, Status


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a cache in plain JSON.

    Returns:
        `path`, `format_version`, `fingerprint`; `dataset` and `teachers` as the identity has them;
        `added`, the teachers that came later; `samples`, `samples_by_split`, `parts` (numbers of
        samples that came together), `views`, `chunk_samples`; `fields` (name → dims, shape, dtype,
        codec, row_bytes as read, bytes as stored, coverage); `row_bytes` and `bytes` of all fields;
        `coverage` in [0, 1], of rows with all fields; `origin` (`url`, `time`, `asked`) where it
        was pulled, else None; `rows` by status and `failures` by kind;
        `rows_of_added` (teacher that came later → its rows by status); `errors` (sample id →
        reason); `identity`, `provenance`, `packages` (package → the versions that made rows).

    Raises:
        CacheError: there is no cache, or it is damaged.
    """
    cache = open_cache(path, blocks=is_url(path))
    stored, coverage = cache.bytes_by_field(), cache.coverage_by_field()
    rows = count_statuses(cache.status)
    failures = (Status.UNREADABLE_VIDEO.label, Status.NON_FINITE_OUTPUT.label)
    return {
        "path": cache.place,
        "format_version": FORMAT_VERSION,
        "fingerprint": cache.fingerprint,
        "dataset": cache.identity.get("dataset"),
        "teachers": cache.identity.get("teachers"),
        "added": cache.added,
        "samples": cache.num_samples,
        "samples_by_split": {
            str(row["values"]): row["counts"]
            for row in cache.samples["split"].value_counts().to_pylist()
        },
        "parts": list(cache.parts),
        "views": cache.num_views,
        "chunk_samples": cache.chunk_samples,
        "fields": {
            name: {
                "dims": ["sample", "view", *field.dims],
                "shape": [cache.num_samples, cache.num_views, *field.shape],
                "dtype": field.dtype,
                "codec": None if field.codec is None else field.codec.to_json(),
                "row_bytes": field.row_bytes,
                "bytes": stored[name],
                "coverage": coverage[name],
            }
            for name, field in cache.fields.items()
        },
        "row_bytes": sum(field.row_bytes for field in cache.fields.values()),
        "bytes": sum(stored.values()),
        "coverage": cache.coverage,
        "origin": None if cache.origin is None else asdict(cache.origin),
        "rows": rows,
        "failures": {kind: rows[kind] for kind in failures},
        "rows_of_added": {
            name: count_statuses(cache.status_of(f"{name}/{STATUS_FIELD.name}"))
            for name in cache.added
        },
        "errors": cache.failures,
        "identity": cache.identity,
        "provenance": cache.provenance,
        "packages": cache.packages,
    }
