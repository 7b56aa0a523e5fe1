"""Shelves whose records were left, came back, or name what is lost: a whole cache's push mends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from cache import CacheError, Selection, open_cache, pull_cache, shelved
from cache.remote import Remote
from cache_making import sign
from sharing_making import FILES, check, full, grow, more_views, own, push, shelf

__all__ = ["full", "shelf"]  # fixtures


@pytest.fixture(scope="module")
def longer(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full cache with a third view; to be read only."""
    path = tmp_path_factory.mktemp("longer") / "longer"
    shutil.copytree(full, path)
    grow(path, more_views)
    return path


@pytest.fixture(scope="module")
def other(longer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The longer cache with other rows in chunk 1, view 0, as of another GPU; to be read only."""
    path = tmp_path_factory.mktemp("other") / "other"
    shutil.copytree(longer, path)
    file = "vit/pooled/c.1.0.0"
    data = np.frombuffer((path / file).read_bytes()[:-4], "<f2").copy()
    data[-1] += 1
    sign(path, file, data.tobytes())
    return path


@pytest.fixture
def kept_records(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No record can be removed, as in a push that is killed before; until `undo`."""
    with monkeypatch.context() as patch:
        remove = Remote.remove
        patch.setattr(Remote, "remove", lambda remote, key: "/" in key and remove(remote, key))
        yield patch


def records(shelf: str) -> dict[str, bytes]:
    """The record files of the only dataset on a shelf."""
    files, root = fsspec.url_to_fs(f"{shelf}/tiny")
    files.invalidate_cache()
    names = [name for name in files.ls(root, detail=False) if name.endswith(".json")]
    return {name: files.cat_file(name) for name in names}


def test_ours_after_a_record_that_could_not_be_removed(
    full: Path,
    longer: Path,
    other: Path,
    shelf: str,
    tmp_path: Path,
    kept_records: pytest.MonkeyPatch,
) -> None:
    push(full, shelf)
    push(longer, shelf)
    assert len(records(shelf)) == 2
    kept_records.undo()
    push(other, shelf, ours=True)
    assert len(records(shelf)) == 1
    pull_cache(shelf, tmp_path / "copy")
    assert check(tmp_path / "copy") == 1.0
    assert own(tmp_path / "copy") == own(other)
    if "://" not in shelf:
        check(Path(shelved(shelf)[0].cache.root))


def test_a_replaced_record_that_comes_back_stands_no_more(
    full: Path, longer: Path, other: Path, shelf: str, tmp_path: Path
) -> None:
    push(full, shelf)
    ((name, content),) = records(shelf).items()
    push(longer, shelf)
    push(other, shelf, ours=True)
    fsspec.url_to_fs(shelf)[0].pipe_file(name, content)
    for _ in range(2):
        assert len(shelved(shelf)[0].records) == 1
        push(other, shelf)
    assert name not in records(shelf)
    pull_cache(shelf, tmp_path / "copy")
    assert own(tmp_path / "copy") == own(other)


def test_commits_stay_while_a_record_names_them(
    full: Path, longer: Path, other: Path, shelf: str, kept_records: pytest.MonkeyPatch
) -> None:
    push(full, shelf)
    push(longer, shelf)
    names = set(shelved(shelf)[0].records[0].commits)
    push(other, shelf, ours=True)
    there = shelved(shelf)[0].cache
    assert names <= {f"commits/{name}" for name in there.list("commits")}
    kept_records.undo()
    push(other, shelf)  # sends nothing, and clears away
    left = {f"commits/{name}" for name in there.list("commits")}
    assert left == set(shelved(shelf)[0].records[0].commits)
    assert len(records(shelf)) == 1


def lost(shelf: str, key: str) -> str:
    """Remove a file of the only cache there; returns its address."""
    there = shelved(shelf)[0].cache
    there.remove(key)
    return there.name(key)


def test_a_lost_commit_is_put_back_by_a_push_of_the_same(
    full: Path, shelf: str, tmp_path: Path
) -> None:
    push(full, shelf)
    (key, *_) = shelved(shelf)[0].records[0].commits
    place = lost(shelf, key)
    with pytest.raises(CacheError) as caught:
        pull_cache(shelf, tmp_path / "copy")
    assert place in str(caught.value)
    assert "dualkd-cache push" in str(caught.value)
    assert push(full, shelf).files == 0
    pull_cache(shelf, tmp_path / "copy")
    assert own(tmp_path / "copy") == own(full)


@pytest.mark.parametrize("damage", [lambda content: content[:-1], None])
def test_a_table_is_put_back(full: Path, shelf: str, tmp_path: Path, damage: Any) -> None:
    push(full, shelf)
    there = shelved(shelf)[0].cache
    content = there.read("samples.parquet")
    if damage:
        there.write("samples.parquet", damage(content))
    else:
        there.remove("samples.parquet")
    push(full, shelf)
    assert there.read("samples.parquet") == content
    pull_cache(shelf, tmp_path / "copy")
    assert own(tmp_path / "copy") == own(full)


def test_a_commit_that_nobody_has_is_done_without_where_a_whole_cache_is_pushed(
    full: Path, longer: Path, shelf: str, tmp_path: Path
) -> None:
    part = tmp_path / "part"  # its commits are others than those of the whole cache
    pull_cache(str(full), part, Selection(fields=("vit/pooled",), views=(0,)))
    push(part, shelf)
    (key, *_) = shelved(shelf)[0].records[0].commits
    place = lost(shelf, key)
    small = tmp_path / "small"
    pull_cache(str(full), small, Selection(views=(1,)))
    with pytest.raises(CacheError) as caught:
        push(small, shelf)
    told = str(caught.value)
    assert f"  {place}\n" in told
    assert f"{small} does not hold all of the cache either" in told
    done = push(longer, shelf)
    assert done.coverage == 1.0
    pull_cache(shelf, tmp_path / "copy")
    assert check(tmp_path / "copy") == 1.0
    assert own(tmp_path / "copy") == own(longer)
    assert len(records(shelf)) == 1


def test_a_shelf_that_an_older_dualkd_left_is_mended(
    full: Path, longer: Path, other: Path, shelf: str, tmp_path: Path
) -> None:
    """Its record replaces only the one that stood, and the one before that stands again."""
    push(full, shelf)
    ((name, content),) = records(shelf).items()
    gone = shelved(shelf)[0].records[0].commits
    fsspec.url_to_fs(shelf)[0].rm(name)
    push(other, shelf)
    there = shelved(shelf)[0].cache
    mine = shelved(shelf)[0].records[0].commits
    for key in set(gone) - set(mine):
        there.remove(key)
    fsspec.url_to_fs(shelf)[0].pipe_file(name, content)
    with pytest.raises(CacheError, match="is missing, which a record names"):
        pull_cache(shelf, tmp_path / "copy")
    push(other, shelf)
    pull_cache(shelf, tmp_path / "copy")
    assert own(tmp_path / "copy") == own(other)
    assert len(list((tmp_path / "copy").rglob("c.*"))) > FILES
    assert open_cache(tmp_path / "copy").num_views == 3
