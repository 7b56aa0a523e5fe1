"""Compressed caches: verified, repaired, grown; what a stranger may have put into them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest

from cache import (
    CacheError,
    DamagedError,
    Field,
    Kind,
    open_cache,
    open_writer,
    repair_cache,
    verify_cache,
)
from cache.codecs import ATTRIBUTE
from cache_making import (
    BLOSC,
    CLIP,
    PACKED_FIELDS,
    PLAIN,
    ROUNDED,
    STEPS,
    compressed_cache,
    contents,
    fill_cache,
    packed_identity,
    sign,
    whole,
)

# zarr says of numcodecs' filters that they are no part of its format.
pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in")

COMPRESSED = (BLOSC, ROUNDED, STEPS, CLIP)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed cache of 10 samples in 2 views in 3 chunks; to be read only."""
    return compressed_cache(tmp_path_factory.mktemp("full") / "packed.cache")


def chunk_file(field: Field, chunk: int = 2) -> str:
    """A chunk file of view 0, as a path inside the cache; the last one has two rows of padding."""
    return f"{field.name}/c.{chunk}.0{'.0' * len(field.shape)}"


def encode(field: Field, values: np.ndarray[Any, Any]) -> bytes:
    """What numcodecs writes for a field's values."""
    assert field.codec is not None
    for one in field.codec.filters(field.numpy_dtype):
        values = one.encode(values)
    return bytes(numcodecs.Blosc(cname="zstd", clevel=5, shuffle=2).encode(values))


# --- verify and repair -------------------------------------------------------------------------


def test_a_sound_compressed_cache_is_sound(full: Path) -> None:
    proof = verify_cache(full)
    assert proof.findings == []
    assert proof.coverage == 1
    assert proof.rows == {
        "missing": 0,
        "valid": 18,
        "unreadable_video": 1,
        "non_finite_output": 1,
    }


@pytest.mark.parametrize("field", COMPRESSED, ids=lambda field: field.name)
def test_every_flipped_byte_is_found_and_made_again(copy: Path, full: Path, field: Field) -> None:
    file = copy / chunk_file(field, 1)
    content = file.read_bytes()
    for place in range(len(content)):
        spoilt = bytearray(content)
        spoilt[place] ^= 16
        file.write_bytes(spoilt)
        (finding,) = verify_cache(copy).findings
        assert (finding.kind, finding.file) == (Kind.CHUNK, chunk_file(field, 1))
        assert finding.what.startswith("is damaged: ")
    (dropped,) = repair_cache(copy).dropped
    assert (dropped.chunk, dropped.views, dropped.commits) == (1, (0, 1), ("commits/1.json",))
    assert verify_cache(copy).findings == []
    with open_writer(copy, identity=packed_identity()) as writer:
        assert writer.pending() == [whole(1, (0, 1), PACKED_FIELDS)]
        fill_cache(writer)
    assert contents(copy) == contents(full)
    assert verify_cache(copy).findings == []


def test_a_file_of_another_size_than_committed_is_found(copy: Path) -> None:
    file = chunk_file(ROUNDED)
    committed = (copy / file).stat().st_size
    (copy / file).write_bytes((copy / file).read_bytes()[:-3])
    (finding,) = verify_cache(copy).findings
    assert finding.what == f"has {committed - 3} bytes, committed {committed}"


def test_another_codec_in_the_metadata_is_found_and_nothing_dropped(copy: Path) -> None:
    metadata = copy / BLOSC.name / "zarr.json"
    metadata.write_bytes(metadata.read_bytes().replace(b'"clevel": 5', b'"clevel": 6'))
    (finding,) = verify_cache(copy).findings
    assert (finding.kind, finding.file) == (Kind.METADATA, f"{BLOSC.name}/zarr.json")
    before = contents(copy, commits=True)
    assert repair_cache(copy).dropped == []
    assert contents(copy, commits=True) == before


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        (STEPS, lambda v: v.__setitem__(3, 60), "holds other values than -5 behind sample 9"),
        (ROUNDED, lambda v: v.__setitem__(3, 0), "holds other values than nan behind sample 9"),
        (CLIP, lambda v: v.__setitem__(3, 1), "holds other values than 0 behind sample 9"),
        (BLOSC, lambda v: v.__setitem__(0, np.inf), "that of sample 8 is not finite although"),
    ],
    ids=lambda value: value.name if isinstance(value, Field) else "",
)
def test_decoded_values_are_held_against_the_statuses(
    copy: Path, field: Field, change: Callable[[Any], None], message: str
) -> None:
    values = np.full((4, *field.shape), field.fill, field.numpy_dtype)
    if field.is_float:
        values[2:] = field.codec.fill(field.fill) if field.codec else field.fill
        values[:2] = 1
    change(values)
    sign(copy, chunk_file(field), encode(field, values))
    (finding,) = verify_cache(copy).findings
    assert message in finding.what


def test_a_failed_row_that_holds_values_in_steps_is_found(copy: Path) -> None:
    """`fixed8` has no NaN: the lowest step stands for it, and nothing else may."""
    values = np.full((4, *STEPS.shape), 1, STEPS.numpy_dtype)  # sample 5 is unreadable
    sign(copy, chunk_file(STEPS, 1), encode(STEPS, values))
    (finding,) = verify_cache(copy).findings
    assert "that of sample 5 is not all -5 although its status is unreadable_video" in finding.what


# --- growth ------------------------------------------------------------------------------------


def test_views_are_added_and_the_codecs_stay(copy: Path, full: Path) -> None:
    with open_writer(copy, identity=packed_identity()) as writer:
        writer.add_views(1)
        assert verify_cache(copy).findings == []
        fill_cache(writer)
    proof = verify_cache(copy)
    assert (proof.findings, proof.coverage) == ([], 1)
    for name in open_cache(full).fields:
        old, new = (json.loads((c / name / "zarr.json").read_bytes()) for c in (full, copy))
        assert new["codecs"] == old["codecs"]
        assert new["attributes"].get(ATTRIBUTE) == old["attributes"].get(ATTRIBUTE)
        assert new["shape"][1] == old["shape"][1] + 1
    grown, before = open_cache(copy, blocks=True), open_cache(full, blocks=True)
    for name, values in before.read([5, 9], [0, 1]).items():
        np.testing.assert_array_equal(grown.read([5, 9], [0, 1])[name], values)


def test_damage_at_a_url_names_a_way_out_that_exists(copy: Path) -> None:
    """There is no repairing at a URL."""
    file = copy / chunk_file(STEPS)
    file.write_bytes(file.read_bytes()[:-1] + b"?" * 2)
    with pytest.raises(DamagedError, match="Repair needs a folder: copy the cache to one"):
        open_cache(f"file://{copy}", blocks=True).read([8], [0])
    (copy / "commits" / "0.json").write_bytes(b"{}")
    with pytest.raises(DamagedError, match=f"^file://{copy}/commits/0.*Repair needs a folder"):
        open_cache(f"file://{copy}", blocks=True)


# --- strangers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [chunk_file(BLOSC, 0), chunk_file(PLAIN, 0), BLOSC.name])
def test_a_link_is_refused_by_the_block_reader_too(copy: Path, tmp_path: Path, name: str) -> None:
    shutil.move(copy / name, tmp_path / "outside")
    (copy / name).symlink_to(tmp_path / "outside")
    for place in (copy, f"file://{copy}"):
        with pytest.raises(
            CacheError, match=r"is a link( to .*)?, and a cache is read from its own files"
        ):
            open_cache(place, blocks=True).read([0], [0])
    assert Kind.STRANGER in {finding.kind for finding in verify_cache(copy).findings}


@pytest.mark.parametrize(
    ("at", "claim", "message"),
    [
        (12, 2**30, "blosc's header says 1073741824"),  # blosc itself would read so far
        (4, 2**30, "decodes to 1073741824 bytes, expected 40"),
    ],
)
def test_a_header_that_lies_is_refused_before_it_is_decoded(
    copy: Path, at: int, claim: int, message: str
) -> None:
    data = bytearray((copy / chunk_file(BLOSC, 0)).read_bytes()[:-4])
    data[at : at + 4] = claim.to_bytes(4, "little")
    sign(copy, chunk_file(BLOSC, 0), bytes(data))
    with pytest.raises(DamagedError, match=message):
        open_cache(copy, blocks=True).read([0], [0])
    (finding,) = verify_cache(copy).findings
    assert message in finding.what
