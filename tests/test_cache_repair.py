"""Repair drops what is damaged and nothing else; what is made again is as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cache import (
    CacheError,
    DamagedError,
    Kind,
    PendingChunk,
    open_cache,
    open_writer,
    repair_cache,
    verify_cache,
)
from cache_making import (
    IDENTITY,
    contents,
    fill_cache,
    full_cache,
    make_cache,
    whole,
)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 samples in 3 chunks, each with a commit of views 0 and 1 and one of view 2; read only."""
    path = full_cache(tmp_path_factory.mktemp("full") / "tiny.cache")
    with open_writer(path, identity=IDENTITY) as writer:
        writer.add_views(1)
        fill_cache(writer)
    return path


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def refill(path: Path) -> list[PendingChunk]:
    """Go on with a cache, as extract does; returns what there was to do."""
    with open_writer(path, identity=IDENTITY) as writer:
        pending = writer.pending()
        fill_cache(writer)
    return pending


def test_a_flipped_byte_is_read_repaired_and_made_again(copy: Path, full: Path) -> None:
    flip(copy / "vit" / "pooled" / "c.1.0.0")
    with pytest.raises(DamagedError, match=f"`dualkd-cache repair {copy}` drops the damaged"):
        open_cache(copy).read([5], [0])
    before = contents(copy, commits=True)
    repair = repair_cache(copy)
    (dropped,) = repair.dropped
    assert repair.beyond == []
    assert (dropped.chunk, dropped.samples, dropped.views) == (1, range(4, 8), (0, 1))
    assert dropped.commits == ("commits/1.json",)
    (finding,) = dropped.findings
    assert (finding.kind, finding.file) == (Kind.CHUNK, "vit/pooled/c.1.0.0")
    after = contents(copy, commits=True)
    assert all(before[name] == content for name, content in after.items())
    gone = {name for name in before if ("/c.1.0" in name or "/c.1.1" in name)}
    assert before.keys() - after.keys() == {"commits/1.json", *gone}
    assert verify_cache(copy).findings == []
    assert not (copy / ".lock").exists()
    with pytest.raises(CacheError, match="does not hold sample 'id-5'"):
        open_cache(copy).read([5], [0])
    assert refill(copy) == [whole(1, (0, 1))]
    assert contents(copy) == contents(full)
    assert sorted(path.name for path in (copy / "commits").iterdir()) == sorted(
        path.name for path in (full / "commits").iterdir()
    )
    assert verify_cache(copy).findings == []


@pytest.mark.parametrize(
    ("name", "pending"),
    [
        ("commits/1.json", whole(1, (0, 1))),
        ("commits/1.1.json", whole(1, (2,))),
        ("status/c.2.2", whole(2, (2,))),
        ("residual/c.0.1.0.0.0.0", whole(0, (0, 1))),
    ],
)
@pytest.mark.parametrize("kind", ["flipped", "missing"])
def test_only_the_damaged_chunk_is_lost(
    copy: Path, full: Path, name: str, pending: PendingChunk, kind: str
) -> None:
    if kind == "flipped":
        flip(copy / name)
    else:
        (copy / name).unlink()
    assert not verify_cache(copy).ok
    (dropped,) = repair_cache(copy).dropped
    assert (dropped.chunk, dropped.views) == (pending.chunk, pending.views)
    assert verify_cache(copy).findings == []
    assert refill(copy) == [pending]
    assert contents(copy) == contents(full)


def test_several_damaged_chunks_at_once(copy: Path, full: Path) -> None:
    for name in ("views/c.0.0.0", "views/c.0.2.0", "status/c.2.1", "commits/1.1.json"):
        flip(copy / name)
    dropped = repair_cache(copy).dropped
    assert [(one.chunk, one.views, one.commits) for one in dropped] == [
        (0, (0, 1, 2), ("commits/0.json", "commits/0.1.json")),
        (1, (2,), ("commits/1.1.json",)),
        (2, (0, 1), ("commits/2.json",)),
    ]
    assert len(refill(copy)) == 3
    assert contents(copy) == contents(full)


def test_a_sound_cache_is_left_as_it_is(copy: Path) -> None:
    before = contents(copy, commits=True)
    repair = repair_cache(copy)
    assert (repair.dropped, repair.beyond) == ([], [])
    assert contents(copy, commits=True) == before


def test_a_commits_copy_goes_and_no_row_with_it(copy: Path, full: Path) -> None:
    shutil.copy(copy / "commits" / "1.json", copy / "commits" / "1.4.json")
    (dropped,) = repair_cache(copy).dropped
    assert (dropped.commits, dropped.views) == (("commits/1.4.json",), ())
    assert contents(copy, commits=True) == contents(full, commits=True)


def test_a_commit_of_no_chunk_goes_alone(copy: Path, full: Path) -> None:
    shutil.copy(copy / "commits" / "1.json", copy / "commits" / "9.json")
    (dropped,) = repair_cache(copy).dropped
    assert dropped.commits == ("commits/9.json",)
    assert not dropped.samples
    assert contents(copy, commits=True) == contents(full, commits=True)


def test_leftovers_are_swept(copy: Path, full: Path) -> None:
    (copy / "commits" / ".1.json.tmp").write_bytes(b"half")
    assert repair_cache(copy).dropped == []
    assert contents(copy, commits=True) == contents(full, commits=True)


@pytest.mark.parametrize(
    "name",
    ["zarr.json", "status/zarr.json", "vit/zarr.json", "samples.parquet", "manifest.json"],
)
@pytest.mark.parametrize("kind", ["flipped", "missing"])
def test_damaged_metadata_are_beyond_repair_and_nothing_is_dropped(
    copy: Path, name: str, kind: str
) -> None:
    flip(copy / "vit" / "pooled" / "c.1.0.0")
    if kind == "flipped":
        flip(copy / name)
    else:
        (copy / name).unlink()
    before = contents(copy, commits=True)
    repair = repair_cache(copy)
    assert repair.dropped == []
    (beyond,) = repair.beyond
    assert beyond.file == name
    assert f"put it back from another copy of this cache, or move {copy} away" in beyond.way_out
    assert contents(copy, commits=True) == before
    with pytest.raises(CacheError):
        open_writer(copy, identity=IDENTITY)
    assert contents(copy, commits=True) == before


def test_strangers_stay_and_are_told(copy: Path) -> None:
    (copy / "notes.txt").write_text("mine")
    flip(copy / "status" / "c.2.2")
    repair = repair_cache(copy)
    assert [one.chunk for one in repair.dropped] == [2]
    assert [finding.file for finding in repair.beyond] == ["notes.txt"]
    assert (copy / "notes.txt").read_text() == "mine"


def test_a_cache_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c"), pytest.raises(CacheError, match="is being written by process"):
        repair_cache(tmp_path / "c")


def test_no_cache_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(CacheError, match="is no cache"):
        repair_cache(tmp_path)
    with pytest.raises(CacheError, match="gone does not exist"):
        repair_cache(tmp_path / "gone")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
