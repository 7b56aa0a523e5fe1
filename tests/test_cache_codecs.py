"""Compressed fields: values, errors, plain zarr, reading by whole chunks where asked, damage."""

from __future__ import annotations

import json
import logging
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import pytest
import zarr

from cache import (
    BitRound,
    BloscZstd,
    CacheError,
    Codec,
    DamagedError,
    Field,
    FieldError,
    Fixed8,
    Status,
    blocks,
    codec_from_json,
    describe,
    open_cache,
    open_writer,
)
from cache.codecs import lossy_codecs
from cache_making import (
    BLOSC,
    IDENTITY,
    PACKED_FIELDS,
    PLAIN,
    STEPS,
    chunk_arrays,
    compressed_cache,
    contents,
    expected_rows,
    full_cache,
    make_cache,
    packed_identity,
)

SAMPLES, VIEWS = np.divmod(np.arange(20), 2)

# zarr says of numcodecs' filters that they are no part of its format.
pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed cache; to be read only."""
    return compressed_cache(tmp_path_factory.mktemp("full") / "packed.cache")


def exact() -> dict[str, Any]:
    """All rows of `full` before any rounding."""
    return expected_rows(SAMPLES, VIEWS, PACKED_FIELDS)


# --- values ------------------------------------------------------------------------------------


def test_lossless_fields_come_back_bit_by_bit(full: Path) -> None:
    rows = open_cache(full, blocks=True).read(SAMPLES, VIEWS)
    for name in ("vit/pooled", "cnn/pooled", "clip/x3d", "status", "views", "input_digest"):
        np.testing.assert_array_equal(rows[name], exact()[name], strict=True)


def test_bitround_keeps_so_many_bits(full: Path) -> None:
    values, expected = open_cache(full, blocks=True).read(SAMPLES, VIEWS)["residual"], exact()
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected["residual"]))
    np.testing.assert_allclose(values, expected["residual"], rtol=2.0**-5)
    mantissas = values.view(np.uint16)[~np.isnan(values)] & 0x3FF
    assert not (mantissas & 0x3F).any()  # 4 of 10 bits
    assert (mantissas & 0x40).any()


def test_fixed8_is_the_nearest_of_256_steps(full: Path) -> None:
    values = open_cache(full, blocks=True).read(SAMPLES, VIEWS)["vit/logits/action"]
    expected = exact()["vit/logits/action"].astype(np.float64)
    step = 130 / 255
    nearest = -5 + np.round((expected + 5) / step) * step
    np.testing.assert_array_equal(np.isnan(values), np.isnan(expected))  # of the failed rows
    np.testing.assert_allclose(values, nearest, rtol=2.0**-11)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("low", "high"), [(-8.0, 8.0), (-3.3, 7.7), (-10.0, 40.0), (0.0, 3.0)])
def test_fixed8_errs_by_half_a_step_at_most(dtype: str, low: float, high: float) -> None:
    codec, every = Fixed8(low, high), np.arange(2**16, dtype=np.uint16).view(np.float16)
    with np.errstate(invalid="ignore"):
        values = every[(every >= low) & (every <= high)].astype(dtype)
    values = values[codec.holds(values)]
    errors = np.abs(codec.stored(values).astype(np.float64) - values.astype(np.float64))
    rounding = np.spacing(np.array(max(abs(low), abs(high)), dtype)) / 2
    assert errors.max() <= (high - low) / 510 * (1 + 1e-6) + rounding


def test_plain_zarr_reads_every_codec(full: Path) -> None:
    group, rows = (
        zarr.open_group(full, mode="r"),
        open_cache(full, blocks=True).read(SAMPLES, VIEWS),
    )
    for field in PACKED_FIELDS:
        values = group[field.name][...].reshape(20, *field.shape)
        if field == STEPS:  # no step for NaN: the lowest stands there, only the status tells
            assert (values[rows["status"] != Status.VALID] == -5).all()
            values[rows["status"] != Status.VALID] = math.nan
        np.testing.assert_array_equal(values, rows[field.name], strict=True)


def test_chunk_files_end_in_their_crc32c(full: Path) -> None:
    commit = json.loads((full / "commits" / "2.json").read_bytes())
    for field in PACKED_FIELDS:
        key = f"{field.name}/c.2.1{'.0' * len(field.shape)}"
        content = (full / key).read_bytes()
        assert int.from_bytes(content[-4:], "little") == google_crc32c.value(content[:-4])
        assert commit["files"][key]["bytes"] == len(content)
    assert open_cache(full).bytes_by_field()["residual"] == sum(
        file.stat().st_size for file in (full / "residual").glob("c.*")
    )


def test_the_description_names_codecs(full: Path) -> None:
    fields = describe(full)["fields"]
    assert fields["residual"]["codec"] == {"codec": "bitround", "keepbits": 4}
    assert fields["vit/pooled"]["codec"] is None
    assert fields["residual"]["row_bytes"] == 12  # as read


# --- what a codec cannot hold ------------------------------------------------------------------


@pytest.mark.parametrize(("value", "which"), [(125.5, "above"), (-5.5, "below")])
def test_a_value_out_of_range_is_refused(tmp_path: Path, value: float, which: str) -> None:
    with make_cache(tmp_path / which, fields=PACKED_FIELDS, identity=packed_identity()) as writer:
        arrays = chunk_arrays(writer, 1, (0, 1))
        arrays["vit/logits/action"][3, 1, 2] = value
        message = rf"'vit/logits/action' of sample 7, view number 1 .* holds {value}, .*low -5\.0"
        with pytest.raises(CacheError, match=message):
            writer.write_chunk(1, arrays)
        assert len(writer.pending()) == 3


def test_a_value_that_would_round_to_infinity_is_refused(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c", fields=PACKED_FIELDS, identity=packed_identity()) as writer:
        arrays = chunk_arrays(writer, 0, (0, 1))
        arrays["residual"][0, 0] = np.finfo(np.float16).max
        with pytest.raises(CacheError, match=r"holds 65504\.0, which its codec \(bitround, keep"):
            writer.write_chunk(0, arrays)


def test_any_nan_of_a_failed_row_survives_rounding(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c", fields=PACKED_FIELDS, identity=packed_identity()) as writer:
        arrays = chunk_arrays(writer, 1, (0, 1))
        arrays["residual"].view(np.uint16)[1, 0] = 0xFFFF  # sample 5, rounds to 0 as an integer
        writer.write_chunk(1, arrays)
    rows = open_cache(tmp_path / "c", blocks=True).read([5], [0], ["residual"])
    assert np.isnan(rows["residual"]).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("blosc_zstd", "'blosc_zstd' is no codec; the codecs are blosc_zstd, bitround, fixed8"),
        ({"codec": "gzip"}, "is no codec"),
        ({"codec": ["bitround"]}, "is no codec"),
        ({"codec": "bitround"}, "codec bitround: parameters none, expected keepbits"),
        ({"codec": "blosc_zstd", "level": 3}, "codec blosc_zstd: parameters level, expected none"),
        ({"codec": "bitround", "keepbits": 0}, "keepbits is 0, expected 1 or more"),
        ({"codec": "bitround", "keepbits": True}, "keepbits is True"),
        ({"codec": "fixed8", "low": 1.0, "high": 1.0}, r"fixed8: 1\.0 to 1\.0 is no range"),
        ({"codec": "fixed8", "low": 0, "high": math.inf}, "0 to inf is no range"),
        ({"codec": "fixed8", "low": "0", "high": 1.0}, r"'0' to 1\.0 is no range"),
    ],
)
def test_what_is_no_codec_is_refused(value: object, message: str) -> None:
    with pytest.raises(CacheError, match=message):
        codec_from_json(value)


@pytest.mark.parametrize(
    ("codec", "dtype", "message"),
    [
        (
            BitRound(10),
            "float16",
            "field 'x': codec bitround keeps 10 bits of mantissa, float16 has 10: keep fewer",
        ),
        (BitRound(3), "uint8", "uint8 has 0"),
        (Fixed8(0.0, 1.0), "uint8", "fixed8 is for floats, not for uint8: take blosc_zstd"),
        (Fixed8(1000.0, 1001.0), "float16", "its 255 steps are finer than those of the dtype"),
        (Fixed8(-1e6, 1e6), "float16", r"-1000000\.0 to 1000000\.0 goes beyond float16"),
    ],
)
def test_a_codec_that_does_not_suit_the_dtype_is_refused(
    codec: Codec, dtype: str, message: str
) -> None:
    with pytest.raises(CacheError, match=message):
        Field("x", ("channel",), (2,), dtype, codec)


# --- identity ----------------------------------------------------------------------------------


def test_a_lossy_codec_is_identity_and_a_lossless_one_is_not(tmp_path: Path) -> None:
    assert lossy_codecs(PACKED_FIELDS) == {
        "residual": {"codec": "bitround", "keepbits": 4},
        "vit/logits/action": {"codec": "fixed8", "low": -5.0, "high": 125.0},
    }
    with pytest.raises(CacheError, match=r"identity\['codecs'\] is \{\}, expected .*bitround"):
        make_cache(tmp_path / "c", fields=PACKED_FIELDS)
    assert list(tmp_path.iterdir()) == []
    full_cache(tmp_path / "c", fields=(PLAIN, BLOSC))
    open_writer(tmp_path / "c", identity=IDENTITY).close()


# --- by whole chunks, only where asked ---------------------------------------------------------


def test_a_compressed_field_is_read_only_where_blocks_are_asked_for(full: Path) -> None:
    cache = open_cache(full)
    assert cache.read([3], [1], ["vit/pooled", "status"])["vit/pooled"][0, 0] == 31
    with pytest.raises(FieldError) as caught:
        cache.read([3], [1], ["vit/pooled", "residual"])
    assert str(caught.value).startswith(
        f"{full}: field 'residual' cannot be mapped (compressed: bitround, keepbits 4). "
        f"open_cache('{full}', blocks=True) reads whole chunks, decoded"
    )
    with pytest.raises(FieldError, match="'cnn/pooled' cannot be mapped"):
        cache.read([3], [1])


def test_it_says_once_what_is_read_by_blocks_and_why(
    full: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        cache = open_cache(full, blocks=True)
        for _ in range(2):
            pickle.loads(pickle.dumps(cache)).read([3], [1])
    (record,) = caplog.records
    assert "residual (compressed: bitround, keepbits 4)" in record.getMessage()
    assert "vit/pooled" not in record.getMessage()


def test_where_all_can_be_mapped_blocks_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache(full_cache(tmp_path / "c"), blocks=True)
    assert (cache.unmapped, cache.chunks_held(), caplog.records) == ({}, 3, [])


def test_only_so_many_blocks_are_held(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_chunk = 2 * 4 * (10 + 12 + 6 + 3)  # views × samples × bytes per row of what is compressed
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2 * one_chunk + 1)
    cache = open_cache(full, blocks=True)
    assert cache.chunks_held() == 2
    for _ in range(2):
        rows = cache.read(SAMPLES, VIEWS)
        np.testing.assert_array_equal(rows["cnn/pooled"], exact()["cnn/pooled"])
    assert len(cache._sources["cnn/pooled"]._blocks) == 4
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    assert open_cache(full, blocks=True).chunks_held() == 1


# --- damage ------------------------------------------------------------------------------------


def test_a_damaged_or_lost_block_is_caught(full: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(full, tmp_path / "c"))
    flipped, swapped, gone = (path / "residual" / f"c.{n}.0.0.0" for n in range(3))
    content = bytearray(flipped.read_bytes())
    content[20] ^= 1
    flipped.write_bytes(content)
    shutil.copy(path / "residual" / "c.1.1.0.0", swapped)
    gone.unlink()
    for row, reason in [
        (0, "is damaged: its crc32c is"),
        (4, "(is damaged|has)"),
        (8, "is missing"),
    ]:
        with pytest.raises(
            DamagedError, match=rf"residual/c\.\d\.0\.0\.0 {reason}.*chunk {row // 4}"
        ):
            open_cache(path, blocks=True).read([row], [0], ["residual"])
    flipped.write_bytes(bytes(content) * 9)
    with pytest.raises(DamagedError, match=r"has more than \d+ bytes, committed"):
        open_cache(path, blocks=True).read([0], [0], ["residual"])


def test_a_block_that_claims_to_be_larger_is_not_unpacked() -> None:
    packed = bytearray(numcodecs.Blosc(cname="zstd").encode(np.zeros(10, np.float16)))
    packed[4:8] = (2**31 - 1).to_bytes(4, "little")
    with pytest.raises(CacheError, match="decodes to 2147483647 bytes, expected 20"):
        BloscZstd().decode(bytes(packed), np.dtype("<f2"), 10)
    with pytest.raises(CacheError, match="has 5 bytes of data, fewer than"):
        BloscZstd().decode(b"short", np.dtype("<f2"), 10)


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ({"codec": "bitround", "keepbits": 5}, "codecs is .*'keepbits': 4"),
        ({"codec": "blosc_zstd"}, "codecs is"),
        (None, "None is no codec"),
    ],
)
def test_attributes_that_do_not_fit_the_codecs_are_refused(
    full: Path, tmp_path: Path, codec: object, message: str
) -> None:
    path = Path(shutil.copytree(full, tmp_path / "c"))
    metadata = path / "residual" / "zarr.json"
    document = json.loads(metadata.read_bytes())
    document["attributes"]["codec"] = codec
    metadata.write_text(json.dumps(document))
    with pytest.raises(CacheError, match=message):
        open_cache(path)


def test_the_same_cache_has_the_same_bytes(full: Path, tmp_path: Path) -> None:
    assert contents(compressed_cache(tmp_path / "again")) == contents(full)
