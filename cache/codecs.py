"""How a field's chunk files are compressed: one codec per field, none by default.

All end in blosc (zstd behind a bitshuffle); the two lossy ones round the values first. They are
zarr's and numcodecs' own, so plain zarr opens such an array. zarr's crc32c comes last: a chunk file
is checked without decoding it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numcodecs
import numpy as np
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

from cache.schema import CacheError, Field

ATTRIBUTE = "codec"  # of an array that has one
BLOSC_HEADER_BYTES = 16  # at most so much larger than its input is what blosc writes

_BLOSC = {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}
_MANTISSA_BITS = {"float16": 10, "float32": 23, "float64": 52}


@dataclass(frozen=True)
class Codec:
    """What the codecs have in common; `codec_from_json` makes them."""

    name: ClassVar[str]
    lossy: ClassVar[bool]

    def __str__(self) -> str:
        """Name and parameters, for messages."""
        return ", ".join([self.name, *(f"{key} {value}" for key, value in asdict(self).items())])

    def to_json(self) -> dict[str, Any]:
        """The codec as configs, identities and arrays' attributes spell it."""
        return {"codec": self.name, **asdict(self)}

    def check(self, dtype: str) -> None:
        """Check that values of a dtype can be stored this way.

        Raises:
            CacheError: they cannot.
        """

    def filters(self, dtype: np.dtype[Any]) -> list[Any]:
        """The codecs of numcodecs in front of blosc, in the order of writing."""
        return []

    def encoded_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """What blosc is given for values of `dtype`."""
        return dtype

    def fill(self, fill: float) -> float:
        """What stands in the array instead of a value that does not exist, usually `fill`."""
        return fill

    def error(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """How far what was given may be from values that were read, at most; same shape."""
        return np.zeros(values.shape)

    def holds(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Which finite values can be stored; same shape."""
        return np.ones(values.shape, np.bool_)

    def stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """The values as plain zarr will read them: rounded, NaN replaced by `fill(NaN)`."""
        return values

    def unfiltered(self, encoded: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Undo the filters: flat values of `dtype` from those that blosc was given."""
        return encoded

    def decode(self, data: bytes, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
        """Decode the data of a chunk file.

        Args:
            data: without the crc32c behind it.
            dtype: of the values.
            count: how many values there must be.

        Returns:
            (count,) values of `dtype`, as plain zarr reads them.

        Raises:
            CacheError: the data are not so many values.
        """
        encoded = np.empty(count, self.encoded_dtype(dtype))
        # Blosc's header tells the decoded size: nothing larger is ever unpacked. It also tells the
        # size of the data, which blosc takes on trust: it would read behind their end.
        if len(data) < BLOSC_HEADER_BYTES:
            raise CacheError(f"has {len(data)} bytes of data, fewer than blosc's header")
        claimed, length = (int.from_bytes(data[at : at + 4], "little") for at in (4, 12))
        if claimed != encoded.nbytes:
            raise CacheError(f"decodes to {claimed} bytes, expected {encoded.nbytes}")
        if length != len(data):
            raise CacheError(f"has {len(data)} bytes of data, blosc's header says {length}")
        try:
            numcodecs.Blosc().decode(data, out=encoded)
        except (RuntimeError, ValueError) as error:
            raise CacheError(f"cannot be decoded: {error}") from error
        return self.unfiltered(encoded, dtype)


@dataclass(frozen=True)
class BloscZstd(Codec):
    """Nothing is lost; for any dtype."""

    name: ClassVar[str] = "blosc_zstd"
    lossy: ClassVar[bool] = False


@dataclass(frozen=True)
class BitRound(Codec):
    """Floats rounded to `keepbits` bits of mantissa: relative errors up to 2^-(keepbits + 1)."""

    name: ClassVar[str] = "bitround"
    lossy: ClassVar[bool] = True
    keepbits: int

    def __post_init__(self) -> None:
        """Refuse what numcodecs would misread.

        Raises:
            CacheError: `keepbits` is no number from 1 on: NaN needs one bit.
        """
        if type(self.keepbits) is not int or self.keepbits < 1:
            raise CacheError(f"codec bitround: keepbits is {self.keepbits!r}, expected 1 or more")

    def check(self, dtype: str) -> None:
        """Floats with more bits than are kept."""
        bits = _MANTISSA_BITS.get(dtype, 0)
        if self.keepbits >= bits:
            raise CacheError(
                f"codec bitround keeps {self.keepbits} bits of mantissa, {dtype} has {bits}: "
                "keep fewer, or take blosc_zstd"
            )

    def filters(self, dtype: np.dtype[Any]) -> list[Any]:
        """The rounding."""
        return [numcodecs.BitRound(self.keepbits)]

    def error(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Half of the last bit that is kept; the smallest values round in steps of one size."""
        sizes = np.abs(values.astype(np.float64))
        return np.maximum(sizes, float(np.finfo(values.dtype).tiny)) * 2.0 ** -(self.keepbits + 1)

    def holds(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """All but the largest, which round to infinity."""
        return np.asarray(np.isfinite(self.stored(values)))

    def stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """Rounded; every NaN becomes the plain one, as rounding would spoil some others."""
        plain = np.where(np.isnan(values), math.nan, values)
        (rounding,) = self.filters(values.dtype)
        return np.asarray(rounding.encode(plain).view(values.dtype))


@dataclass(frozen=True)
class Fixed8(Codec):
    """Floats as one of 256 even steps from `low` to `high`: errors up to (high - low) / 510.

    There is no step for NaN: `low` stands where there is no valid row, and only the row's status
    tells. Reading a cache puts the NaN back.
    """

    name: ClassVar[str] = "fixed8"
    lossy: ClassVar[bool] = True
    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse what is no range.

        Raises:
            CacheError: `low` and `high` are no finite numbers in this order.
        """
        numbers = all(type(limit) in (int, float) for limit in (self.low, self.high))
        if not numbers or not 0 < self.high - self.low < math.inf:
            raise CacheError(f"codec fixed8: {self.low!r} to {self.high!r} is no range of numbers")

    def check(self, dtype: str) -> None:
        """Floats whose own steps are finer."""
        if dtype not in _MANTISSA_BITS:
            raise CacheError(f"codec fixed8 is for floats, not for {dtype}: take blosc_zstd")
        largest, limits = max(abs(self.low), abs(self.high)), np.finfo(dtype)
        finest = largest * float(limits.eps)
        if largest > float(limits.max) or (self.high - self.low) / 255 < finest:
            raise CacheError(
                f"codec fixed8: {self.low} to {self.high} goes beyond {dtype}, or its 255 steps "
                "are finer than those of the dtype"
            )

    def filters(self, dtype: np.dtype[Any]) -> list[Any]:
        """The scale; float16 is computed in float32, or errors would exceed half a step."""
        wide = "<f4" if dtype.itemsize == 2 else "<f8"
        scale = 255 / (self.high - self.low)
        return [
            numcodecs.AsType(encode_dtype=wide, decode_dtype=dtype.str),
            numcodecs.FixedScaleOffset(offset=self.low, scale=scale, dtype=wide, astype="|u1"),
        ]

    def encoded_dtype(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """One byte."""
        return np.dtype(np.uint8)

    def fill(self, fill: float) -> float:
        """The lowest step: there is none for NaN."""
        return self.low

    def error(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Half a step, and the rounding of the step itself to the dtype."""
        largest = max(abs(self.low), abs(self.high))
        rounding = largest * float(np.finfo(values.dtype).eps)
        return np.full(values.shape, (self.high - self.low) / 510 + rounding)

    def holds(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Those within the range: a value outside would come back as quite another one."""
        wide = values.astype(np.float64)  # the limits need not be numbers of the field's dtype
        return np.asarray((wide >= self.low) & (wide <= self.high))

    def stored(self, values: NDArray[Any]) -> NDArray[Any]:
        """The nearest steps; the lowest one for NaN."""
        encoded = np.where(np.isnan(values), values.dtype.type(self.low), values)
        for codec in self.filters(values.dtype):
            encoded = codec.encode(encoded)
        return np.asarray(self.unfiltered(encoded, values.dtype).reshape(values.shape))

    def unfiltered(self, encoded: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Look the steps up: numcodecs decodes each of the 256 only once."""
        steps = np.arange(256, dtype=np.uint8)
        for codec in reversed(self.filters(dtype)):
            steps = codec.decode(steps)
        return np.asarray(np.take(steps, encoded))


_CODECS: dict[str, type[Codec]] = {kind.name: kind for kind in (BloscZstd, BitRound, Fixed8)}


def codec_from_json(value: object) -> Codec:
    """Make a codec from `{"codec": name, <its parameters>}`.

    Raises:
        CacheError: there is no such codec, or its parameters are others.
    """
    parameters = dict(value) if isinstance(value, Mapping) else {}
    name = parameters.pop("codec", None)
    kind = _CODECS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise CacheError(f"{value!r:.200} is no codec; the codecs are {', '.join(_CODECS)}")
    expected = {field.name for field in fields(kind)}
    if parameters.keys() != expected:
        raise CacheError(
            f"codec {name}: parameters {', '.join(sorted(parameters)) or 'none'}, expected "
            f"{', '.join(sorted(expected)) or 'none'}"
        )
    return kind(**parameters)


def array_codec(attributes: object) -> Codec | None:
    """The codec that the attributes of an array name, if any.

    Raises:
        CacheError: they name one that does not exist.
    """
    if not isinstance(attributes, Mapping) or ATTRIBUTE not in attributes:
        return None
    return codec_from_json(attributes[ATTRIBUTE])


def lossy_codecs(fields: Iterable[Field]) -> dict[str, Any]:
    """The codecs that decide the value of a row, by field: `codecs` of the cache's identity."""
    codecs = {field.name: field.codec for field in fields}
    return {name: codec.to_json() for name, codec in codecs.items() if codec and codec.lossy}


def zarr_codecs(codec: Codec | None, dtype: np.dtype[Any]) -> list[dict[str, Any]]:
    """The `codecs` of an array's `zarr.json`, for values of `dtype`.

    Returns:
        filters, then `bytes`, then blosc if there is a codec, then `crc32c`.
    """
    filters, compressor = [], []
    if codec is not None:
        for one in codec.filters(dtype):
            configuration = one.get_config()
            name = f"numcodecs.{configuration.pop('id')}"
            filters.append({"name": name, "configuration": configuration})
        blosc = {"typesize": codec.encoded_dtype(dtype).itemsize, **_BLOSC}
        compressor = [{"name": "blosc", "configuration": blosc}]
    serializer: dict[str, Any] = {"name": "bytes"}
    if dtype.itemsize > 1:
        serializer["configuration"] = {"endian": "little"}
    return [*filters, serializer, *compressor, {"name": "crc32c"}]


@contextmanager
def quiet_zarr() -> Iterator[None]:
    """Silence zarr's remark, at each opening, that numcodecs' filters are no part of its format."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Numcodecs codecs are not in", ZarrUserWarning)
        yield
