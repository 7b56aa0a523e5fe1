"""What a cache is made of: statuses, fields, names; its errors."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from cache.codecs import Codec

FORMAT_VERSION = 1

VIEW_COLUMNS = ("centre_sec", "x0", "y0", "x1", "y1", "flip")

# Of the samples table; and one column of class indices per head.
SAMPLE_COLUMNS = ("sample_id", "path", "split", "start_sec", "stop_sec")
LABEL_PREFIX = "label_"

DTYPES = (
    *("float16", "float32", "float64"),
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
)

# One segment of a field's name becomes one folder: no "..", no "/" at an end, nothing hidden.
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_RESERVED = ("commits", "projection")
_MAX_SEGMENTS = 4
_MAX_DIMENSIONS = 8


class CacheError(Exception):
    """Something is wrong with a cache or with what was asked of it; the message says what."""

    # Not KeyError's: a message must not come out as the repr of a string.
    __str__ = Exception.__str__


class RowError(CacheError, IndexError):
    """A row was asked for that the cache has no place for, or that nobody has made yet."""


class FieldError(CacheError, KeyError):
    """A field was asked for that the cache does not have."""


class DamagedError(CacheError):
    """A file of the cache is missing, has another size or other bytes than were committed."""


class Status(IntEnum):
    """What became of one row; the values of the array `status`."""

    MISSING = 0
    VALID = 1
    UNREADABLE_VIDEO = 2
    NON_FINITE_OUTPUT = 3

    @property
    def label(self) -> str:
        """The name in commits, in `info --json` and in the array's `flag_meanings`."""
        return self.name.lower()


def check_field_name(name: str) -> None:
    """Allow only names that are plain relative paths inside the cache.

    Raises:
        CacheError: the name could lead elsewhere, or to a place that is taken.
    """
    segments = name.split("/") if isinstance(name, str) else []
    plain = 0 < len(segments) <= _MAX_SEGMENTS and all(map(_SEGMENT.fullmatch, segments))
    if not plain or segments[0] in _RESERVED or "zarr.json" in segments:
        raise CacheError(
            f"{name!r} cannot name a field: 1 to {_MAX_SEGMENTS} parts of letters, digits, "
            f"'_', '-', '.', joined by '/', and not under {' or '.join(_RESERVED)}"
        )


@dataclass(frozen=True)
class Field:
    """One array of the cache, described without the sample and view axes.

    Attributes:
        name: path in the zarr group, as `vit/logits/action`.
        dims: names of the axes after sample and view.
        shape: their sizes.
        dtype: one of `DTYPES`.
        codec: how its chunk files are compressed; not at all by default.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    codec: Codec | None = None

    def __post_init__(self) -> None:
        """Refuse what could not stand in a cache.

        Raises:
            CacheError: the name, a size, a dimension, the dtype or the codec is not allowed.
        """
        object.__setattr__(self, "dims", tuple(self.dims))
        object.__setattr__(self, "shape", tuple(self.shape))
        check_field_name(self.name)
        if self.dtype not in DTYPES:
            raise CacheError(
                f"field {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}"
            )
        named = all(isinstance(dim, str) and dim for dim in self.dims)
        if not named or len(self.dims) != len(self.shape) or len(self.shape) > _MAX_DIMENSIONS:
            raise CacheError(
                f"field {self.name!r}: dims {self.dims} must name each axis of shape {self.shape}, "
                f"at most {_MAX_DIMENSIONS}"
            )
        if len({"sample", "view", *self.dims}) != len(self.dims) + 2:
            raise CacheError(f"field {self.name!r}: dims {self.dims} repeat a name or an outer one")
        if any(type(size) is not int or size < 1 for size in self.shape):
            raise CacheError(f"field {self.name!r}: shape {self.shape} must be whole numbers ≥ 1")
        if self.is_status and (self.shape, self.dtype, self.codec) != ((), "uint8", None):
            raise CacheError(
                f"field {self.name!r}: {self.dtype} of shape {self.shape}; one of this name says "
                "what became of rows, and is uint8 of shape () without a codec"
            )
        if self.codec is not None:
            try:
                self.codec.check(self.dtype)
            except CacheError as error:
                raise CacheError(f"field {self.name!r}: {error}") from None

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype as it lies in the files: little-endian on every machine."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def is_float(self) -> bool:
        """Whether the values are floating point."""
        return self.dtype.startswith("float")

    @property
    def fill(self) -> float | int:
        """The value of rows that do not exist: NaN for floats, 0 for integers."""
        return math.nan if self.is_float else 0

    @property
    def is_status(self) -> bool:
        """Whether the values say what became of the rows of other fields; see `status_name`."""
        *group, last = self.name.split("/")
        return last == "status" and len(group) <= 1

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape) * self.numpy_dtype.itemsize


# These three stand in every cache; `create_cache` adds them to the fields it is given.
STATUS_FIELD = Field("status", (), (), "uint8")
DIGEST_FIELD = Field("input_digest", (), (), "uint64")
VIEWS_FIELD = Field("views", ("view_column",), (len(VIEW_COLUMNS),), "float64")
OWN_FIELDS = (STATUS_FIELD, DIGEST_FIELD, VIEWS_FIELD)


def status_name(field: str, fields: Collection[str]) -> str:
    """The array that says what became of a field's rows.

    An added teacher has one of its own, `<teacher>/status`; all other fields go by `status`.

    Args:
        field: its name.
        fields: the names of all fields of the cache.
    """
    own = f"{field.partition('/')[0]}/{STATUS_FIELD.name}"
    return own if own in fields else STATUS_FIELD.name


def check_samples(samples: pa.Table) -> None:
    """Check the samples table as far as the cache itself relies on it.

    Raises:
        CacheError: a column is missing, the table is empty, or ids are absent or repeated.
    """
    columns = samples.column_names
    missing = [name for name in SAMPLE_COLUMNS if name not in columns]
    if not any(name.startswith(LABEL_PREFIX) for name in columns):
        missing.append(f"{LABEL_PREFIX}<head>")
    if missing:
        raise CacheError(
            f"the samples table lacks {', '.join(missing)}; "
            f"it has {', '.join(columns) or 'no columns'}"
        )
    ids = samples["sample_id"]
    if not (pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise CacheError(f"the samples table's sample_id is {ids.type}, needed is string")
    if len(ids) == 0:
        raise CacheError("the samples table is empty: there is nothing to cache")
    if ids.null_count:
        raise CacheError(f"the samples table has {ids.null_count} rows without sample_id")
    if len(ids.unique()) != len(ids):
        repeated = next(row for row in ids.value_counts().to_pylist() if row["counts"] > 1)
        raise CacheError(
            f"sample_id {repeated['values']!r} has {repeated['counts']} rows in the samples table"
        )
