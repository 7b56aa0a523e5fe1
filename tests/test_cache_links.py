"""A cache of DVC's links reads, travels and grows as any other; DVC's own files stay as they are.

The links are made here, as `dvc checkout` makes them; tests/test_dvc.py has DVC make them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from cache import (
    CacheError,
    describe,
    open_cache,
    open_writer,
    pull_cache,
    push_cache,
    verify_cache,
)
from cache.layout import LOCK
from cache.sealed import temporary, write_by_rename
from cache_making import GROWTHS, IDENTITY, contents, fill_cache, full_cache

KINDS = ("absolute", "relative", "hard")


def link_to(kind: str, source: Path, place: Path) -> None:
    if kind == "hard":
        os.link(source, place)
    elif kind == "relative":
        place.symlink_to(os.path.relpath(source, place.parent))
    else:
        place.symlink_to(source)


def linked_copy(full: Path, folder: Path, kind: str) -> tuple[Path, Path]:
    """Copy a cache as `dvc checkout` does with links.

    Returns:
        the copy, and the DVC cache that its files link to.
    """
    path, store = folder / "linked.cache", folder / "store"
    for file in full.rglob("*"):
        if not file.is_file():
            continue
        digest = hashlib.md5(file.read_bytes()).hexdigest()
        kept = store / "files" / "md5" / digest[:2] / digest[2:]
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            shutil.copyfile(file, kept)
            kept.chmod(0o444)
        place = path / file.relative_to(full)
        place.parent.mkdir(parents=True, exist_ok=True)
        link_to(kind, kept, place)
    return path, store


def state(store: Path) -> dict[str, tuple[bytes, int, int]]:
    """Of every file of a DVC cache its bytes, mode and time of change."""
    found = {}
    for file in store.rglob("*"):
        about = file.lstat()
        if file.is_file():
            found[str(file)] = (file.read_bytes(), about.st_mode, about.st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache of plain files; to be read only."""
    return full_cache(tmp_path_factory.mktemp("full") / "tiny.cache")


@pytest.mark.parametrize("kind", KINDS)
def test_links_of_dvc_are_read_as_the_files_they_lead_to(
    full: Path, tmp_path: Path, kind: str
) -> None:
    path, _ = linked_copy(full, tmp_path, kind)
    plain, linked = open_cache(full).read([0, 9], [1, 0]), open_cache(path).read([0, 9], [1, 0])
    for name, values in plain.items():
        np.testing.assert_array_equal(linked[name], values, strict=True)
    assert describe(path)["bytes"] == describe(full)["bytes"]
    proof, expected = verify_cache(path), verify_cache(full)
    assert proof.findings == []
    assert (proof.files, proof.bytes) == (expected.files, expected.bytes)


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_growth_changes_no_file_of_the_dvc_cache(
    full: Path, tmp_path: Path, kind: str, growth: str
) -> None:
    path, store = linked_copy(full, tmp_path, kind)
    grown = Path(shutil.copytree(full, tmp_path / "grown.cache"))
    before = state(store)
    for folder in (path, grown):
        with open_writer(folder, identity=IDENTITY) as writer:
            GROWTHS[growth](writer)
            fill_cache(writer)
    assert state(store) == before
    assert verify_cache(path).findings == []
    assert contents(path) == contents(grown)


@pytest.mark.parametrize("kind", KINDS)
def test_a_linked_cache_is_pushed_and_grows_by_a_pull(
    full: Path, tmp_path: Path, kind: str
) -> None:
    path, store = linked_copy(full, tmp_path, kind)
    grown = Path(shutil.copytree(full, tmp_path / "grown.cache"))
    with open_writer(grown, identity=IDENTITY) as writer:
        writer.add_views(1)
        fill_cache(writer)
    before = state(store)
    shelf = str(tmp_path / "shelf")
    url = push_cache(path, shelf, author="one", about=lambda *_: {}).url
    assert contents(Path(pulled(url, tmp_path / "pulled.cache"))) == contents(full)
    push_cache(grown, shelf, author="two", about=lambda *_: {})
    assert contents(Path(pulled(url, path))) == contents(grown)
    assert verify_cache(path).findings == []
    assert state(store) == before
    assert contents(Path(pulled(str(path), tmp_path / "from_links.cache"))) == contents(grown)


def pulled(url: str, path: Path) -> Path:
    """Pull, without the note of where it came from, which no other copy has."""
    pull_cache(url, path)
    (path / "origin.json").unlink(missing_ok=True)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_written_file_that_dvc_keeps_is_not_written_into(tmp_path: Path, kind: str) -> None:
    kept, path = tmp_path / "kept", tmp_path / "manifest.json"
    kept.write_bytes(b"old")
    link_to(kind, kept, temporary(path))
    write_by_rename(path, b"new")
    assert (kept.read_bytes(), path.read_bytes()) == (b"old", b"new")
    assert not path.is_symlink()


def test_a_lock_that_is_a_link_is_not_written_into(full: Path, tmp_path: Path) -> None:
    path, store = linked_copy(full, tmp_path, "absolute")
    kept = store / "files" / "md5" / "00" / ("0" * 30)
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(b"the lock of a killed writer")
    (path / LOCK).symlink_to(kept)
    with pytest.raises(CacheError, match="remove it"):
        open_writer(path, identity=IDENTITY)
    assert kept.read_bytes() == b"the lock of a killed writer"
