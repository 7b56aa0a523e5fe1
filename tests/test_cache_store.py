"""Caches read in place: their chunk files come into a bounded store on this disk, before use."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from cache import CacheError, DamagedError, Store, TeacherCache, chunk_store, open_cache
from cache.remote import Remote
from cache_making import full_cache
from sharing_making import push


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """A complete cache of 40 samples in 2 views in 10 chunks."""
    return full_cache(tmp_path / "full", count=40)


@pytest.fixture
def url(full: Path, tmp_path: Path) -> str:
    """The same on a shelf."""
    return push(full, f"memory://{tmp_path.name}/shelf").url


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are fetched, as they are."""
    names: list[str] = []
    download = Remote.download

    def told(remote: Remote, key: str, *others: object) -> None:
        names.append(key)
        download(remote, key, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Remote, "download", told)
    return names


def stored(folder: Path) -> int:
    """Bytes of chunk files in a store."""
    return sum(path.stat().st_size for path in folder.rglob("c.*"))


ROWS = np.array([39, 0, 17, 0, 8]), np.array([1, 0, 1, 1, 0])


def test_rows_are_the_same_and_fetched_once(
    url: str, full: Path, tmp_path: Path, fetched: list[str]
) -> None:
    store, expected = Store(tmp_path / "store"), open_cache(full).read(*ROWS)
    for _ in range(2):
        cache = open_cache(url, blocks=True, store=store)
        rows = cache.read(*ROWS)
        for name, values in expected.items():
            np.testing.assert_array_equal(rows[name], values, strict=True)
    assert len(fetched) == len(set(fetched)) == 5 * 6  # five chunks and views of six fields
    np.testing.assert_array_equal(cache.status, open_cache(full).status)


def test_it_stays_within_its_size(url: str, full: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store", 3000)
    cache = open_cache(url, blocks=True, store=store)
    local = open_cache(full)
    everything = [np.arange(40).repeat(2), np.tile([0, 1], 40)]
    for rows in np.random.default_rng(0).permutation(80).reshape(20, 4):
        picked = [axis[rows] for axis in everything]
        for name, values in cache.read(*picked).items():
            np.testing.assert_array_equal(values, local.read(*picked, [name])[name])
        assert stored(store.folder) <= 3000
    assert cache.num_chunks == 10
    assert cache.chunks_held() == max(1, 1500 // 824)
    assert open_cache(url, blocks=True, store=Store(tmp_path / "large")).chunks_held() == 10


def test_what_is_wanted_comes_by_itself_in_that_order(
    url: str, tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_store, "_FETCHERS", 1)
    cache = open_cache(url, blocks=True, store=Store(tmp_path / "store"))
    cache.want([9, 30, 9, 0], [1, 0, 1, 0], ["vit/pooled", "residual"])
    until = time.monotonic() + 30
    while len(fetched) < 6 and time.monotonic() < until:
        time.sleep(0.01)
    assert set(fetched[:4]) == {
        f"{name}/c.{place}"
        for name, place in (
            ("vit/pooled", "2.1.0"),
            ("residual", "2.1.0.0.0.0"),
            ("vit/pooled", "7.0.0"),
            ("residual", "7.0.0.0.0.0"),
        )
    }
    cache.read([9, 30, 0], [1, 0, 0], ["vit/pooled", "residual"])
    assert len(fetched) == 6


def test_damage_of_the_store_is_mended_from_there(
    url: str, full: Path, tmp_path: Path, fetched: list[str]
) -> None:
    store = Store(tmp_path / "store")
    open_cache(url, blocks=True, store=store).read(*ROWS)
    for count, path in enumerate(store.folder.rglob("c.*")):
        if count % 2:
            path.write_bytes(path.read_bytes()[:-1])
        else:
            path.write_bytes(b"\7" + path.read_bytes()[1:])
    before = len(fetched)
    rows = open_cache(url, blocks=True, store=store).read(*ROWS)
    for name, values in open_cache(full).read(*ROWS).items():
        np.testing.assert_array_equal(rows[name], values)
    assert len(fetched) == 2 * before
    cache = open_cache(url, blocks=True, store=store)
    cache.read([0], [0])
    shutil.rmtree(store.folder)  # at any time
    (store.folder / cache.fingerprint).mkdir(parents=True)
    cache.read(*ROWS)


def test_what_is_not_there_is_named(url: str, tmp_path: Path) -> None:
    files, root = fsspec.url_to_fs(url)
    cache = open_cache(url, blocks=True, store=Store(tmp_path / "store"))
    name = f"{root}/vit/pooled/c.1.0.0"
    files.pipe_file(name, b"\7" + files.cat_file(name)[1:])
    with pytest.raises(DamagedError, match=rf"^{url}/vit/pooled/c\.1\.0\.0 is damaged: .*--check"):
        cache.read([4], [0])
    files.rm(name)
    with pytest.raises(DamagedError, match=rf"^{url}/vit/pooled/c\.1\.0\.0 is missing"):
        cache.read([4], [0])
    cache.want([4], [0], ["vit/pooled"])  # is no error: whoever reads it is told
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_store_that_cannot_be_made_is_told(url: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CacheError, match="cannot be made for a store"):
        open_cache(url, blocks=True, store=Store(tmp_path / "file"))


def read_all(cache: TeacherCache) -> list[int]:
    """Runs in other processes."""
    rows = cache.read(np.arange(40), np.ones(40, int), ["input_digest", "residual"])
    return [int(value) for value in rows["input_digest"]]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_it(full: Path, tmp_path: Path, method: str) -> None:
    shelf, store = str(tmp_path / "shelf"), Store(tmp_path / "store", 2000)
    cache = open_cache(f"file://{push(full, shelf).url}", blocks=True, store=store)
    cache.want(np.arange(40), np.ones(40, int), ["residual"])
    cache.read([0, 5], [1, 1])
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map_async(read_all, [cache] * 4).get(timeout=120)
    assert found == [[2**63 + 10 * sample + 1 for sample in range(40)]] * 4
    assert stored(store.folder) <= 2000
    assert pickle.loads(pickle.dumps(cache)).place == cache.place
