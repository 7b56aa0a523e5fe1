"""Caches at a URL: read by whole chunks where asked, the same rows, clear words where not."""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from cache import CacheError, DamagedError, TeacherCache, open_cache
from cache_making import PROJECTION, full_cache, samples_table

SAMPLES, VIEWS = np.array([9, 0, 5, 0, 3, 9, 6]), np.array([1, 0, 0, 0, 1, 0, 1])


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache of 10 samples in 2 views in 3 chunks; to be read only."""
    return full_cache(tmp_path_factory.mktemp("full") / "tiny.cache")


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been fetched yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, full: Path, tmp_path: Path) -> Iterator[str]:
    """The same cache in a store of fsspec's."""
    place = f"memory://{tmp_path.name}/c" if request.param == "memory" else f"file://{tmp_path}/c"
    files, root = fsspec.url_to_fs(place)
    files.put(str(full), root, recursive=True)
    yield place
    files.rm(root, recursive=True)


def test_a_url_is_opened_only_where_blocks_are_asked_for(url: str) -> None:
    with pytest.raises(CacheError) as caught:
        open_cache(url)
    assert str(caught.value).startswith(
        f"{url} is a URL, and what is not on this machine cannot be mapped. Copy the cache here, "
        f"or open_cache('{url}', blocks=True) reads whole chunks"
    )


def test_a_cache_at_a_url_tells_and_reads_the_same(
    url: str, full: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, local = open_cache(url, blocks=True), open_cache(full)
    assert cache.place == url
    assert cache.fingerprint == local.fingerprint
    assert cache.samples.equals(samples_table(10), check_metadata=True)
    assert cache.bytes_by_field() == local.bytes_by_field()
    np.testing.assert_array_equal(cache.status, local.status)
    np.testing.assert_array_equal(cache.projection["vit_weight"], PROJECTION["vit_weight"])
    rows, expected = cache.read(SAMPLES, VIEWS), local.read(SAMPLES, VIEWS)
    for name, values in expected.items():
        np.testing.assert_array_equal(rows[name], values, strict=True)
    (record,) = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert f"{url}: chunk files are fetched into " in record.getMessage()
    assert "home/dualkd/chunks when they are used" in record.getMessage()


def test_it_travels_with_what_was_fetched(url: str) -> None:
    cache = pickle.loads(pickle.dumps(open_cache(url, blocks=True)))
    assert cache.samples.num_rows == 10
    assert cache.read([7], [1], ["input_digest"])["input_digest"][0] == 2**63 + 71


def read_digests(cache: TeacherCache) -> list[int]:
    """Runs in the other process."""
    return [int(value) for value in cache.read([9, 0, 5], [1, 1, 1])["input_digest"]]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_it(full: Path, method: str) -> None:
    cache = open_cache(f"file://{full}", blocks=True)
    cache.read([0, 5], [1, 1])
    with multiprocessing.get_context(method).Pool(1) as pool:
        digests = pool.apply_async(read_digests, (cache,)).get(timeout=60)
    assert digests == [2**63 + 91, 2**63 + 1, 2**63 + 51]


def test_errors_name_the_url(url: str) -> None:
    files, root = fsspec.url_to_fs(url)
    cache = open_cache(url, blocks=True)
    files.rm(f"{root}/vit/pooled/c.1.0.0")
    with pytest.raises(DamagedError, match=rf"^{url}/vit/pooled/c\.1\.0\.0 is missing"):
        cache.read([4], [0])
    with pytest.raises(CacheError, match=rf"{url} is no folder on this machine"):
        _ = cache.path
    files.rm(f"{root}/samples.parquet")
    with pytest.raises(DamagedError, match=rf"^{url}/samples\.parquet is missing"):
        open_cache(url, blocks=True)
    with pytest.raises(CacheError, match=rf"{url}/none is no cache: there is no zarr\.json"):
        open_cache(f"{url}/none", blocks=True)


def test_only_what_is_asked_for_is_fetched(tmp_path: Path) -> None:
    path = full_cache(tmp_path / "c")
    (path / "thesis.tex").write_text("mine")
    (path / "vit" / "pooled" / "c.0.0.0").unlink()
    cache = open_cache(f"file://{path}", blocks=True)
    cache.read([0], [0], ["residual"])
    cache.read([4], [0], ["vit/pooled"])


def test_lost_commits_are_not_taken_for_an_empty_cache(tmp_path: Path) -> None:
    path = full_cache(tmp_path / "c")
    shutil.rmtree(path / "commits")
    with pytest.raises(DamagedError, match=rf"^file://{path}/commits is missing: no telling"):
        open_cache(f"file://{path}", blocks=True)
