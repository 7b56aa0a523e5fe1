"""The proof of a cache: whatever is changed is found and named; what is sound passes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

from cache import CacheError, Kind, open_cache, open_writer, verify_cache
from cache.sealed import seal
from cache_making import (
    FIELDS,
    GROWTHS,
    IDENTITY,
    chunk_arrays,
    contents,
    fill_cache,
    full_cache,
    make_cache,
    more_samples,
)

SMALL: dict[str, Any] = {"count": 6, "views": 2, "fields": FIELDS[:2]}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache of 6 samples in 2 views in 2 chunks; to be read only."""
    return full_cache(tmp_path_factory.mktemp("full") / "tiny.cache", **SMALL)


def found(path: Path) -> dict[str, str]:
    """File → what is wrong with it, of all damage."""
    findings = verify_cache(path).findings
    return {find.file: find.what for find in findings if find.kind != Kind.UNFINISHED}


# --- what is sound -----------------------------------------------------------------------------


def test_a_sound_cache_passes_and_is_counted(full: Path) -> None:
    before = contents(full, commits=True)
    proof = verify_cache(str(full))
    assert proof.ok
    assert proof.findings == []
    assert proof.path == full
    assert proof.fingerprint == open_cache(full).fingerprint
    assert proof.coverage == 1
    assert proof.rows == {
        "missing": 0,
        "valid": 11,
        "unreadable_video": 1,
        "non_finite_output": 0,
    }
    assert proof.files == len(before)
    assert proof.bytes == sum(map(len, before.values()))
    assert proof.packages["zarr"] == [zarr.__version__]
    assert contents(full, commits=True) == before


def test_progress_is_told_chunk_by_chunk(full: Path) -> None:
    seen = []
    verify_cache(full, lambda units: (seen.append(unit) or unit for unit in units))  # type: ignore[func-returns-value]
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_partial_cache_is_sound(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c", **SMALL) as writer:
        assert verify_cache(tmp_path / "c").coverage == 0  # while it is being written, too
        writer.write_chunk(1, chunk_arrays(writer, 1, (1,)), views=[1])
        proof = verify_cache(tmp_path / "c")
    assert proof.findings == []
    assert proof.coverage == pytest.approx(2 / 12)


def test_what_a_killed_writer_left_is_no_damage(copy: Path) -> None:
    (copy / "commits" / "1.json").unlink()
    (copy / "status" / "c.1.0").unlink()
    (copy / "commits" / ".1.json.tmp").write_bytes(b"half")
    (copy / "vit" / "pooled" / "c.1.1.0.0123.partial").write_bytes(b"half")
    (copy / ".lock").write_bytes(b"")
    proof = verify_cache(copy)
    assert proof.ok
    assert [(finding.file, finding.what) for finding in proof.findings] == [
        ("commits/.1.json.tmp", "is half-written"),
        ("vit/pooled/c.1.1.0.0123.partial", "is half-written"),
        ("input_digest/c.1.0", "and 8 more files of chunk 1 have no commit"),
    ]
    assert {finding.kind for finding in proof.findings} == {Kind.UNFINISHED}
    open_writer(copy, identity=IDENTITY).close()
    assert verify_cache(copy).findings == []


def test_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is no cache; `dualkd-cache extract --dataset"):
        verify_cache(tmp_path)
    with pytest.raises(CacheError, match="gone does not exist"):
        verify_cache(tmp_path / "gone")


# --- bytes -------------------------------------------------------------------------------------


def flip_bytes(path: Path, place: int, mask: int) -> bytes:
    """Change one byte of a file; returns what it held."""
    original = path.read_bytes()
    content = bytearray(original)
    content[place] ^= mask
    path.write_bytes(content)
    return original


def assert_every_flip_is_found(cache: Path, *, flips_per_file: int, seed: int) -> int:
    """Change one random byte at a time, in every file so many; returns how many were tried."""
    draw = random.Random(seed)
    tried = 0
    for name in contents(cache, commits=True):
        path = cache / name
        size = path.stat().st_size
        for place in draw.sample(range(size), min(flips_per_file, size)):
            mask = draw.randrange(1, 256)
            original = flip_bytes(path, place, mask)
            wrong = found(cache)
            assert name in wrong, (name, place, mask, wrong)
            path.write_bytes(original)
            tried += 1
    assert verify_cache(cache).findings == []
    return tried


def test_any_changed_byte_of_any_file_is_found(copy: Path) -> None:
    files = len(contents(copy, commits=True))
    assert assert_every_flip_is_found(copy, flips_per_file=3, seed=1) == 3 * files


def grow(path: Path) -> None:
    """Let a cache grow in every way."""
    with open_writer(path, identity=IDENTITY) as writer:
        writer.add_samples(more_samples(writer.layout.num_samples, 5))
        for kind in ("views", "field", "teacher"):
            GROWTHS[kind](writer)
        fill_cache(writer)


def test_any_changed_byte_of_a_grown_cache_is_found(copy: Path) -> None:
    before = len(contents(copy, commits=True))
    grow(copy)
    assert assert_every_flip_is_found(copy, flips_per_file=2, seed=3) > 4 * before


@pytest.mark.slow
def test_thousands_of_changed_bytes_are_found(copy: Path) -> None:
    assert assert_every_flip_is_found(copy, flips_per_file=100, seed=2) > 2000


def test_truncated_lengthened_emptied_and_missing_files_are_found(copy: Path) -> None:
    for name, original in contents(copy, commits=True).items():
        path = copy / name
        for content in (original[:-1], original + b"\0", original + b"\n", b""):
            path.write_bytes(content)
            assert name in found(copy), (name, len(content) - len(original))
        path.unlink()
        assert name in found(copy), name
        path.write_bytes(original)
    assert verify_cache(copy).findings == []


@pytest.mark.parametrize(
    "name",
    [
        *("notes.txt", "vit/pooled/notes.txt", "vit/pooled/c.9.0.0", "vit/pooled/c.0.9.0"),
        *("vit/pooled/c.00.1.0", "vit/pooled/c.0.0", "commits/x.json", "junk/1.tmp"),
        *("projection/scale/c.0", "samples.parquet.bak", ".hidden", "status/zarr.json.bak"),
    ],
)
def test_extra_files_are_found(copy: Path, name: str) -> None:
    (copy / name).parent.mkdir(exist_ok=True)
    (copy / name).write_bytes(b"")
    proof = verify_cache(copy)
    assert not proof.ok
    (finding,) = proof.findings
    assert (finding.kind, finding.file) == (Kind.STRANGER, name)
    assert finding.way_out == "it is no part of the cache: remove it if nobody needs it"


def test_a_commits_copy_is_found(copy: Path) -> None:
    shutil.copy(copy / "commits" / "1.json", copy / "commits" / "1.4.json")
    what = "commits chunk files that commits/1.json commits already"
    assert found(copy) == {"commits/1.4.json": what}


def test_links_and_odd_files_are_named_and_never_opened(copy: Path) -> None:
    outside = copy.parent / "outside"
    (copy / "status" / "c.0.0").rename(outside)
    (copy / "status" / "c.0.0").symlink_to(outside)
    (copy / "folder").symlink_to(copy.parent)
    os.mkfifo(copy / "pipe")
    assert found(copy) == {
        "status/c.0.0": "is missing",
        "folder": f"is a link to {copy.parent}, which is no file of a DVC cache",
        "pipe": "is no plain file",
    }


def test_every_finding_names_the_way_out(copy: Path) -> None:
    flip_bytes(copy / "vit" / "pooled" / "c.1.0.0", 3, 1)
    flip_bytes(copy / "commits" / "0.json", 3, 1)
    flip_bytes(copy / "samples.parquet", -2, 1)
    ways = {finding.file: finding.way_out for finding in verify_cache(copy).findings}
    repair = f"`dualkd-cache repair {copy}` drops the damaged chunks, so that the next extract"
    assert ways["vit/pooled/c.1.0.0"].startswith(repair)
    assert ways["commits/0.json"].startswith(repair)
    assert ways["samples.parquet"] == (
        "no repair can make it again: put it back from another copy of this cache, or move "
        f"{copy} away and extract again"
    )
    assert len(ways) == 3


def test_all_damage_is_listed_at_once(copy: Path) -> None:
    flip_bytes(copy / "projection" / "zarr.json", 0, 1)
    flip_bytes(copy / "vit" / "zarr.json", -1, 1)
    (copy / "projection" / "scale" / "c").unlink()
    flip_bytes(copy / "status" / "c.1.1", 0, 2)
    flip_bytes(copy / "commits" / "0.json", 9, 2)
    assert set(found(copy)) == {
        *("projection/zarr.json", "vit/zarr.json", "projection/scale/c"),
        *("status/c.1.1", "commits/0.json"),
    }


def test_a_chunk_that_is_committed_meanwhile_is_no_damage(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c", **SMALL) as writer:
        writer.write_chunk(0, chunk_arrays(writer, 0, (0, 1)))
        writer.write_chunk(1, chunk_arrays(writer, 1, (0, 1)))
        commit, aside = tmp_path / "c" / "commits" / "1.json", tmp_path / "aside"
        commit.rename(aside)

        def publish(units: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
            aside.rename(commit)
            return units

        proof = verify_cache(tmp_path / "c", publish)
    assert proof.findings == []
    assert proof.coverage == pytest.approx(2 / 3)


def test_metadata_that_cannot_be_read_end_the_proof(copy: Path) -> None:
    flip_bytes(copy / "status" / "c.1.1", 0, 2)
    (copy / "status" / "zarr.json").write_bytes(b"{")
    proof = verify_cache(copy)
    assert proof.fingerprint is None
    assert [finding.file for finding in proof.findings] == ["status/zarr.json"]


def test_lost_commits_are_no_empty_cache(copy: Path) -> None:
    shutil.rmtree(copy / "commits")
    assert found(copy) == {"commits": "is missing: no telling which chunks are complete"}


# --- values ------------------------------------------------------------------------------------


def rewrite(cache: Path, field: str, change: Callable[[Any], object], dtype: str) -> None:
    """Change the values of a field's last chunk in view 0 and sign them, file and commit."""
    (path,) = (cache / field).glob("c.1.0*")
    values = np.frombuffer(path.read_bytes()[:-4], dtype).reshape(4, -1).copy()
    change(values)
    checksum = google_crc32c.value(values.tobytes())
    path.write_bytes(values.tobytes() + checksum.to_bytes(4, "little"))
    commit = cache / "commits" / "1.json"
    document = json.loads(commit.read_bytes())
    del document["crc32c"]
    document["files"][path.relative_to(cache).as_posix()]["crc32c"] = f"{checksum:08x}"
    commit.write_bytes(seal(document))


@pytest.mark.parametrize(
    ("field", "dtype", "place", "value", "message"),
    [
        ("vit/pooled", "<f2", 0, np.inf, "1 rows that break .* of sample 4 is not finite although"),
        ("vit/pooled", "<f2", 1, 0.5, "that of sample 5 is not all NaN .* unreadable_video"),
        ("vit/pooled", "<f2", 3, 0.5, "holds other values than nan behind sample 5"),
        ("input_digest", "<u8", 2, 7, "holds other values than 0 behind sample 5"),
        ("status", "u1", 0, 0, r"holds the statuses \[0, 2\], not 1 … 3"),
        ("status", "u1", 0, 9, r"holds the statuses \[2, 9\], not 1 … 3"),
    ],
)
def test_values_that_break_their_word_are_found(
    copy: Path, field: str, dtype: str, place: int, value: float, message: str
) -> None:
    rewrite(copy, field, lambda values: values.__setitem__(place, value), dtype)
    (finding,) = verify_cache(copy).findings
    assert (finding.kind, finding.chunk, finding.view) == (Kind.CHUNK, 1, 0)
    assert finding.file.startswith(f"{field}/c.1.0")
    assert re.search(message, finding.what), finding.what


def test_counts_of_a_commit_that_do_not_fit_are_found(copy: Path) -> None:
    commit = copy / "commits" / "0.json"
    document = json.loads(commit.read_bytes())
    del document["crc32c"]
    document["statuses"]["status"]["valid"] = 3
    commit.write_bytes(seal(document))
    (what,) = found(copy).values()
    assert "counts the statuses {" in what
    assert "'valid': 3" in what
    assert "its chunk holds {'missing': 0, 'valid': 8" in what


def test_another_samples_table_is_found_even_if_the_manifest_agrees(copy: Path) -> None:
    from cache.manifest import write_files

    other = full_cache(copy.parent / "other", count=7, views=1, fields=FIELDS[:1])
    write_files(copy, {"samples.parquet": (other / "samples.parquet").read_bytes()})
    (what,) = found(copy).values()
    assert what.endswith("samples.parquet has 7 rows, the arrays have 6")


def test_a_grown_cache_is_sound(copy: Path) -> None:
    with open_writer(copy, identity=IDENTITY) as writer:
        writer.add_views(1)
        assert verify_cache(copy).coverage == pytest.approx(2 / 3)
        fill_cache(writer)
    proof = verify_cache(copy)
    assert proof.findings == []
    assert proof.coverage == 1
