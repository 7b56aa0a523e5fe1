"""What may be written into a chunk: the right arrays, and values that keep their status's word."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import Layout
from cache.schema import VIEWS_FIELD, CacheError, Field, Status, status_name


def check_fields(
    layout: Layout, chunk: int, given: Collection[str], pending: Collection[str]
) -> None:
    """Check that a chunk's fields come as they must: with a status all that go by it.

    Args:
        layout: the cache.
        chunk: index along the sample axis.
        given: the fields to be written.
        pending: those that the chunk does not hold in any of the views to be written.

    Raises:
        CacheError: a field is missing or unknown.
    """
    names = layout.fields
    absent = {name for name in pending if status_name(name, names) in given} - set(given)
    absent |= {status_name(name, names) for name in given} & set(pending) - set(given)
    unknown = set(given) - names.keys()
    if not given:
        absent = set(pending)
    if absent or unknown:
        raise CacheError(
            f"chunk {chunk}: fields missing: {', '.join(sorted(absent)) or 'none'}; "
            f"unknown: {', '.join(sorted(unknown)) or 'none'}"
        )


def check_arrays(
    layout: Layout,
    chunk: int,
    arrays: Mapping[str, NDArray[Any]],
    views: int,
    standing: Mapping[str, NDArray[np.uint8]],
) -> None:
    """Check the arrays of one chunk before a byte of them is written.

    Args:
        layout: the cache.
        chunk: index along the sample axis.
        arrays: field → (samples of the chunk, views, ...).
        views: how many views they hold.
        standing: the statuses, by name, that the arrays go by and that are written already.

    Raises:
        CacheError: a field has another shape or dtype, or holds values that its rows' status
            forbids.
    """
    given = {name: field for name, field in layout.fields.items() if name in arrays}
    for name, field in given.items():
        array, shape = arrays[name], (len(layout.sample_range(chunk)), views, *field.shape)
        if array.shape != shape or array.dtype != np.dtype(field.dtype):
            raise CacheError(
                f"chunk {chunk}: field {name!r} is {array.dtype} of shape {array.shape}, "
                f"expected {field.dtype} of {shape}"
            )
    statuses = {name: arrays[name] for name, field in given.items() if field.is_status}
    for status in statuses.values():
        if not are_statuses(status):
            raise CacheError(f"chunk {chunk}: statuses are {np.unique(status).tolist()}, not 1 … 3")
    for name, field in given.items():
        status = (statuses | dict(standing))[status_name(name, layout.fields)]
        wrong = wrong_rows(field, arrays[name], status)
        if wrong.any():
            row, view = np.argwhere(wrong)[0].tolist()
            raise CacheError(
                f"chunk {chunk}: field {name!r} of sample {layout.sample_range(chunk)[row]}, view "
                f"number {view} of those given, {broken_promise(status[row, view])}"
            )
        _check_range(layout, chunk, field, arrays[name], status)


def are_statuses(status: NDArray[np.uint8]) -> bool:
    """Whether every row has become something: numbers of `Status`, and none is missing."""
    return bool(np.isin(status, list(Status)[1:]).all())


def is_empty(values: NDArray[Any], empty: float) -> NDArray[np.bool_]:
    """Where values are what stands for none, NaN or a number; same shape."""
    return np.asarray(np.isnan(values) if np.isnan(empty) else values == empty)


def wrong_rows(
    field: Field, array: NDArray[Any], status: NDArray[np.uint8], empty: float = math.nan
) -> NDArray[np.bool_]:
    """Find values that break their status's word: a valid row is finite, any other is empty.

    So nobody trains on half of a failure.

    Args:
        field: the field.
        array: its values, the axes of `status` first.
        status: the rows' statuses.
        empty: what stands for a float that does not exist.
    """
    if not field.is_float:
        return np.zeros(status.shape, np.bool_)
    rows = array.reshape(*status.shape, -1)
    valid = status == Status.VALID
    wrong: NDArray[np.bool_] = valid & ~np.isfinite(rows).all(axis=-1)
    if field != VIEWS_FIELD:  # of a failure it may tell what was tried
        wrong |= ~valid & ~is_empty(rows, empty).all(axis=-1)
    return wrong


def broken_promise(status: int, empty: float = math.nan) -> str:
    """What is wrong with a row that `wrong_rows` found."""
    kind = Status(status)
    nothing = "NaN" if np.isnan(empty) else f"{empty:g}"
    wrong = "is not finite" if kind == Status.VALID else f"is not all {nothing}"
    return f"{wrong} although its status is {kind.label}"


def _check_range(
    layout: Layout, chunk: int, field: Field, array: NDArray[Any], status: NDArray[np.uint8]
) -> None:
    """A value that its codec cannot hold is refused: nothing is cut off in silence."""
    if field.codec is None:
        return
    rows = array.reshape(*status.shape, -1)
    outside = (status == Status.VALID)[..., None] & ~field.codec.holds(rows)
    if outside.any():
        row, view, place = np.argwhere(outside)[0].tolist()
        raise CacheError(
            f"chunk {chunk}: field {field.name!r} of sample {layout.sample_range(chunk)[row]}, "
            f"view number {view} of those given, holds {rows[row, view, place]}, which its codec "
            f"({field.codec}) cannot store, as {outside.sum() - 1} other values. Such a row may be "
            f"given the status {Status.NON_FINITE_OUTPUT.label}; or make the cache with another "
            "codec"
        )
