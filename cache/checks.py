"""What may be written into a chunk: the right arrays, and values that keep their status's word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.codecs import Codec
from cache.layout import Layout
from cache.schema import STATUS_FIELD, VIEWS_FIELD, CacheError, Field, Status


def check_arrays(
    layout: Layout, chunk: int, arrays: Mapping[str, NDArray[Any]], views: int
) -> None:
    """Check the arrays of one chunk before a byte of them is written.

    Args:
        layout: the cache.
        chunk: index along the sample axis.
        arrays: field → (samples of the chunk, views, ...).
        views: how many views they hold.

    Raises:
        CacheError: a field is missing or unknown, has another shape or dtype, or holds values
            that its rows' status forbids.
    """
    absent, unknown = layout.fields.keys() - arrays.keys(), arrays.keys() - layout.fields.keys()
    if absent or unknown:
        raise CacheError(
            f"chunk {chunk}: fields missing: {', '.join(sorted(absent)) or 'none'}; "
            f"unknown: {', '.join(sorted(unknown)) or 'none'}"
        )
    for name, field in layout.fields.items():
        array, shape = arrays[name], (len(layout.sample_range(chunk)), views, *field.shape)
        if array.shape != shape or array.dtype != np.dtype(field.dtype):
            raise CacheError(
                f"chunk {chunk}: field {name!r} is {array.dtype} of shape {array.shape}, "
                f"expected {field.dtype} of {shape}"
            )
    status = arrays[STATUS_FIELD.name]
    if not np.isin(status, list(Status)[1:]).all():
        raise CacheError(f"chunk {chunk}: statuses are {np.unique(status).tolist()}, not 1 … 3")
    for name, field in layout.fields.items():
        if field.is_float:
            _check_values(layout, chunk, field, arrays[name], status)


def _check_values(
    layout: Layout, chunk: int, field: Field, array: NDArray[Any], status: NDArray[Any]
) -> None:
    """A valid row is finite, any other is NaN: so nobody trains on half of a failure."""
    rows = array.reshape(*status.shape, -1)
    valid = status == Status.VALID
    wrong = valid & ~np.isfinite(rows).all(axis=-1)
    if field != VIEWS_FIELD:  # of a failure it may tell what was tried
        wrong |= ~valid & ~np.isnan(rows).all(axis=-1)
    if wrong.any():
        row, view = np.argwhere(wrong)[0].tolist()
        kind = Status(status[row, view])
        raise CacheError(
            f"chunk {chunk}: field {field.name!r} of sample {layout.sample_range(chunk)[row]}, "
            f"view number {view} of those given, "
            f"{'is not finite' if kind == Status.VALID else 'is not all NaN'} although its status "
            f"is {kind.label}"
        )
    if field.codec is not None:
        _check_range(layout, chunk, field, field.codec, rows, valid)


def _check_range(
    layout: Layout,
    chunk: int,
    field: Field,
    codec: Codec,
    rows: NDArray[Any],
    valid: NDArray[np.bool_],
) -> None:
    """A value that its codec cannot hold is refused: nothing is cut off in silence."""
    outside = valid[..., None] & ~codec.holds(rows)
    if outside.any():
        row, view, place = np.argwhere(outside)[0].tolist()
        raise CacheError(
            f"chunk {chunk}: field {field.name!r} of sample {layout.sample_range(chunk)[row]}, "
            f"view number {view} of those given, holds {rows[row, view, place]}, which its codec "
            f"({codec}) cannot store, as {outside.sum() - 1} other values. Such a row may be given "
            f"the status {Status.NON_FINITE_OUTPUT.label}; or make the cache with another codec"
        )
