"""Reading rows back: values, order, other processes, damage, strangers' caches, the description."""

from __future__ import annotations

import gc
import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache import (
    CacheError,
    DamagedError,
    Field,
    FieldError,
    IdentityMismatch,
    RowError,
    Status,
    TeacherCache,
    chunkmap,
    describe,
    fingerprint,
    open_cache,
    open_writer,
)
from cache.sealed import seal
from cache_making import (
    FIELDS,
    IDENTITY,
    PROJECTION,
    chunk_arrays,
    contents,
    expected_rows,
    full_cache,
    make_cache,
    samples_table,
)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache of 10 samples in 2 views in 3 chunks; to be read only."""
    return full_cache(tmp_path_factory.mktemp("full") / "tiny.cache")


# --- what a cache tells ------------------------------------------------------------------------


def test_a_cache_tells_what_it_is(full: Path) -> None:
    cache = open_cache(str(full))
    assert cache.path == full
    assert cache.identity == IDENTITY
    assert cache.fingerprint == fingerprint(IDENTITY)
    assert cache.provenance == {"command": "pytest"}
    assert (cache.num_samples, cache.num_views, cache.chunk_samples) == (10, 2, 4)
    assert list(cache.fields) == ["status", "input_digest", "views", *(f.name for f in FIELDS)]
    assert cache.fields["residual"] == FIELDS[2]
    assert cache.samples.equals(samples_table(10), check_metadata=True)
    assert repr(cache).endswith("tiny.cache': 10 samples, 2 views, 100.0% present)")


def test_projection_comes_back(full: Path) -> None:
    projection = open_cache(full).projection
    assert projection.keys() == PROJECTION.keys()
    for name, values in PROJECTION.items():
        np.testing.assert_array_equal(projection[name], values, strict=True)


def test_status_tells_the_fate_of_each_row(full: Path) -> None:
    expected = np.full((10, 2), Status.VALID, np.uint8)
    expected[5, 0], expected[6, 1] = Status.UNREADABLE_VIDEO, Status.NON_FINITE_OUTPUT
    np.testing.assert_array_equal(open_cache(full).status, expected, strict=True)


def test_bytes_are_the_files_on_disk(full: Path) -> None:
    sizes = open_cache(full).bytes_by_field()
    assert sizes["residual"] == 6 * (4 * 12 * 2 + 4)
    for name, size in sizes.items():
        assert size == sum(file.stat().st_size for file in (full / name).glob("c.*"))


def test_check_identity(full: Path) -> None:
    open_cache(full).check_identity(IDENTITY)
    with pytest.raises(IdentityMismatch, match=r"views\.seed: cache 7, wanted 8"):
        open_cache(full).check_identity({**IDENTITY, "views": {"rule": "random", "seed": 8}})


def test_describe_is_plain_json(full: Path) -> None:
    told = json.loads(json.dumps(describe(full)))
    assert told["path"] == str(full)
    assert told["format_version"] == 1
    assert told["fingerprint"] == fingerprint(IDENTITY)
    assert told["dataset"] == IDENTITY["dataset"]
    assert told["teachers"] == IDENTITY["teachers"]
    assert (told["samples"], told["views"], told["chunk_samples"]) == (10, 2, 4)
    assert told["samples_by_split"] == {"train": 7, "test": 3}
    assert told["coverage"] == 1.0
    assert told["rows"] == {
        "missing": 0,
        "valid": 18,
        "unreadable_video": 1,
        "non_finite_output": 1,
    }
    assert told["failures"] == {"unreadable_video": 1, "non_finite_output": 1}
    assert told["fields"]["vit/pooled"] == {
        "dims": ["sample", "view", "channel"],
        "shape": [10, 2, 5],
        "dtype": "float16",
        "codec": None,
        "row_bytes": 10,
        "bytes": 6 * 44,
        "coverage": 1.0,
    }
    assert told["row_bytes"] == 6 + 10 + 24 + 48 + 8 + 1
    assert told["bytes"] == sum(field["bytes"] for field in told["fields"].values())
    assert told["provenance"] == {"command": "pytest"}


# --- rows --------------------------------------------------------------------------------------


def test_rows_come_in_the_order_asked_for(full: Path) -> None:
    samples, views = np.array([9, 0, 5, 0, 3, 9, 6]), np.array([1, 0, 0, 0, 1, 0, 1])
    rows = open_cache(full).read(samples, views)
    expected = expected_rows(samples, views)
    assert rows.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(rows[name], values, strict=True)


def test_only_the_fields_asked_for(full: Path) -> None:
    rows = open_cache(full).read([1], [0], ["vit/pooled", "status"])
    assert list(rows) == ["vit/pooled", "status"]
    assert rows["status"].tolist() == [1]


def test_rows_are_fresh_arrays(full: Path) -> None:
    cache = open_cache(full)
    cache.read([1], [0])["vit/pooled"][:] = 99
    assert cache.read([1], [0])["vit/pooled"][0, 0] == 10


def test_no_rows_are_no_rows(full: Path) -> None:
    rows = open_cache(full).read([], [])
    assert rows["residual"].shape == (0, 2, 2, 1, 3)
    assert rows["residual"].dtype == np.float16


def test_few_maps_and_no_descriptors_are_kept(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunkmap, "MAX_MAPS", 12)  # 2 for each of the 6 fields
    cache = open_cache(full)
    samples, views = np.tile(np.divmod(np.arange(20), 2), 3)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        rows = cache.read(samples, views)
        np.testing.assert_array_equal(
            rows["residual"], expected_rows(samples, views)["residual"], strict=True
        )
    maps = Path("/proc/self/maps").read_text().count(str(full))
    assert maps == 12
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    del cache
    gc.collect()
    assert str(full) not in Path("/proc/self/maps").read_text()


def test_threads_do_not_take_each_others_maps_away(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunkmap, "MAX_MAPS", 6)  # one for each field, so that all come and go
    cache = open_cache(full)

    def read(seed: int) -> bool:
        samples, views = np.divmod(np.random.default_rng(seed).integers(20, size=64), 2)
        rows, expected = cache.read(samples, views), expected_rows(samples, views)
        return all(rows[name].tobytes() == values.tobytes() for name, values in expected.items())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))


def test_more_chunk_files_than_addresses_are_refused(full: Path) -> None:
    cache = open_cache(full)
    cache._sources["residual"]._step = 2**61
    with pytest.raises(CacheError, match=r"there is no room to map 6 chunk files of .* 'residual'"):
        cache.read([0], [0])


@pytest.mark.parametrize(
    ("samples", "views", "fields", "error", "message"),
    [
        ([10], [0], None, RowError, r"sample 10 is not in .*tiny.cache, which has 10 samples"),
        ([0, -1], [0, 0], None, RowError, r"sample -1 is not in .* \(0 … 9\)"),
        ([0], [2], None, RowError, "view 2 is not in .*, which has 2 views"),
        ([0, 1], [0], None, RowError, "2 samples but 1 views; give pairs"),
        ([0.5], [0], None, RowError, "samples are float64 of shape .* expected a list of integers"),
        ([[0]], [0], None, RowError, r"samples are int64 of shape \(1, 1\)"),
        ([True], [0], None, RowError, "samples are bool"),
        ([0], [0], ["pooled"], FieldError, "no field 'pooled'; it has status, .*, vit/pooled"),
        ([0], [0], "status", FieldError, r"give a list of names, as \['status'\]"),
    ],
)
def test_wrong_questions_are_answered_clearly(
    full: Path,
    samples: object,
    views: object,
    fields: object,
    error: type[CacheError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        open_cache(full).read(samples, views, fields)


def test_a_live_cache_shows_what_is_committed(tmp_path: Path) -> None:
    path = tmp_path / "live"
    with make_cache(path) as writer:
        before = open_cache(path)
        writer.write_chunk(2, chunk_arrays(writer, 2, (1,)), views=[1])
        (path / "vit" / "pooled" / "c.0.0.0").write_bytes(b"in flight")
        cache = open_cache(path)
        assert (before.coverage, cache.coverage) == (0.0, 0.1)
        assert cache.read([9, 8], [1, 1])["input_digest"].tolist() == [2**63 + 91, 2**63 + 81]
        with pytest.raises(RowError) as caught:
            cache.read([9, 0], [1, 0])
    assert str(caught.value) == (
        f"{path} does not hold sample 'id-0' (number 0), view 0, field 'status': nobody has made "
        f"it yet. `dualkd-cache extract --dataset tiny --out {path} --views 2` makes it"
    )


def test_reading_needs_no_write_permission_and_writes_nothing(copy: Path) -> None:
    before = contents(copy, commits=True)
    for place in [copy, *copy.rglob("*")]:
        place.chmod(0o555 if place.is_dir() else 0o444)
    cache = open_cache(copy)
    assert cache.read([3], [1])["input_digest"][0] == 2**63 + 31
    assert cache.status.any()
    assert contents(copy, commits=True) == before
    for place in [copy, *copy.rglob("*")]:
        place.chmod(0o755 if place.is_dir() else 0o644)


# --- other processes ---------------------------------------------------------------------------


def test_a_pickled_cache_is_small_and_reads(full: Path) -> None:
    cache = open_cache(full)
    first = cache.read([7], [1])
    data = pickle.dumps(cache)
    assert len(data) < 8000
    again = pickle.loads(data)
    assert again.fingerprint == cache.fingerprint
    np.testing.assert_array_equal(again.read([7], [1])["residual"], first["residual"])
    assert again.samples.equals(cache.samples)


def read_digests(cache: TeacherCache, samples: list[int]) -> list[int]:
    """Runs in the other process."""
    return [int(value) for value in cache.read(samples, [1] * len(samples))["input_digest"]]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_it(full: Path, method: str) -> None:
    cache = open_cache(full)
    cache.read([0, 5], [1, 1])  # some files are mapped here already
    with multiprocessing.get_context(method).Pool(1) as pool:
        digests = pool.apply(read_digests, (cache, [9, 0, 5]))
    assert digests == [2**63 + 91, 2**63 + 1, 2**63 + 51]


# --- damage ------------------------------------------------------------------------------------


def flip(path: Path, place: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0, 17, 39])
def test_a_flipped_bit_is_caught_at_the_first_reading(copy: Path, place: int) -> None:
    flip(copy / "vit" / "pooled" / "c.1.0.0", place)
    cache = open_cache(copy)
    cache.read([4], [0], ["residual"])
    cache.read([0, 9, 4], [0, 0, 1], ["vit/pooled"])
    for _ in range(2):
        with pytest.raises(DamagedError) as caught:
            cache.read([7], [0], ["vit/pooled"])
        message = str(caught.value)
        assert message.startswith(f"{copy}/vit/pooled/c.1.0.0 is damaged: its crc32c is ")
        assert "'vit/pooled' of chunk 1 (samples 4 … 7), view 0" in message
        assert f"`dualkd-cache repair {copy}`" in message


def test_truncated_and_missing_files_are_caught(copy: Path) -> None:
    cut, gone = copy / "residual" / "c.0.0.0.0.0.0", copy / "residual" / "c.0.1.0.0.0.0"
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    cache = open_cache(copy)
    with pytest.raises(DamagedError, match=r"c\.0\.0\.0\.0\.0\.0 has 99 bytes, committed 100\. "):
        cache.read([0], [0])
    with pytest.raises(DamagedError, match=r"c\.0\.1\.0\.0\.0\.0 is missing\. It holds"):
        cache.read([0], [1])
    cut.write_bytes(b"")
    with pytest.raises(DamagedError, match="has 0 bytes, committed 100"):
        cache.read([0], [0])


def test_any_flipped_bit_of_a_commit_is_caught(copy: Path) -> None:
    commit = copy / "commits" / "1.json"
    original = commit.read_bytes()
    for place in range(0, len(original), 7):
        flip(commit, place)
        with pytest.raises(DamagedError, match=r"commits/1\.json is damaged"):
            open_cache(copy)
        commit.write_bytes(original)


def test_lost_commits_are_not_taken_for_an_empty_cache(copy: Path) -> None:
    shutil.rmtree(copy / "commits")
    with pytest.raises(DamagedError, match=r"commits is missing: no telling which chunks"):
        open_cache(copy)
    with pytest.raises(DamagedError, match=r"commits is missing: no telling which chunks"):
        open_writer(copy, identity=IDENTITY)
    assert len(list(copy.glob("status/c.*"))) == 6
    assert not (copy / ".lock").exists()


def test_a_damaged_projection_is_caught(copy: Path) -> None:
    flip(copy / "projection" / "vit_weight" / "c.0.0", 3)
    with pytest.raises(DamagedError, match=r"vit_weight/c\.0\.0 is damaged: crc32c is"):
        _ = open_cache(copy).projection


def test_a_damaged_samples_table_is_caught(copy: Path) -> None:
    table = copy / "samples.parquet"
    flip(table, 40)  # inside the first column's page
    with pytest.raises(DamagedError, match=r"samples\.parquet cannot be read"):
        _ = open_cache(copy).samples
    table.unlink()
    with pytest.raises(DamagedError, match=r"samples\.parquet is missing"):
        _ = open_cache(copy).samples


# --- strangers' caches -------------------------------------------------------------------------


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file."""
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


def test_no_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="gone does not exist; a cache is a folder"):
        open_cache(tmp_path / "gone")
    with pytest.raises(CacheError, match="is no cache; `dualkd-cache extract --dataset"):
        open_cache(tmp_path)
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(CacheError, match="is a zarr group, but no cache of dualkd"):
        open_cache(tmp_path)
    (tmp_path / "zarr.json").write_text("[" * 100_000)
    with pytest.raises(DamagedError, match=r"zarr\.json is no JSON"):
        open_cache(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ours: ours.update(format_version=2), "format version 2; this dualkd reads 1"),
        (lambda ours: ours["identity"].update(extra=1), "somebody changed one of them"),
        (lambda ours: ours.update(fingerprint="0" * 64), "the stored one is '0000"),
        (lambda ours: ours.update(identity=[]), "expected two objects"),
        (lambda ours: ours.update(fields={}), "expected a list of at most 256 names"),
        (lambda ours: ours["fields"].append("../../etc"), "'../../etc' cannot name a field"),
        (lambda ours: ours["fields"].append(["x"]), r"\['x'\] cannot name a field"),
        (lambda ours: ours["fields"].append("vit/more"), r"vit/more/zarr\.json is missing"),
        (lambda ours: ours["fields"].remove("status"), "field is None, expected Field"),
    ],
)
def test_a_strange_root_is_refused(
    copy: Path, change: Callable[[Any], object], message: str
) -> None:
    edit(copy / "zarr.json", lambda root: change(root["attributes"]["dualkd"]))
    with pytest.raises(CacheError, match=message):
        open_cache(copy)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("residual", {"data_type": "float128"}, "data_type is 'float128', expected one of"),
        ("status", {"data_type": "int8"}, "int8 of shape .* what became of rows, and is uint8"),
        ("residual", {"shape": [10, 2, 2, 2, 1, 10**15]}, "chunk_shape is"),
        ("residual", {"shape": [10, 1, 2, 2, 1, 3]}, r"shape is \[10, 1\], expected \[10, 2\]"),
        ("residual", {"shape": [10, 2, -2, 2, 1, 3]}, "expected whole numbers ≥ 1"),
        ("residual", {"shape": "many"}, "expected whole numbers ≥ 1"),
        ("residual", {"shape": []}, "dimension_names is"),
        ("residual", {"chunk_grid": 3}, "chunk_grid is 3, expected"),
        ("residual", {"node_type": "group"}, "node_type is 'group', expected array"),
        ("residual", {"codecs": [{"name": "bytes"}]}, "codecs is .*'crc32c'"),
        ("residual", {"chunk_key_encoding": {"name": "v2"}}, "chunk_key_encoding is"),
        ("residual", {"dimension_names": ["sample", "view", 1, 2, 3, {}]}, "must name each axis"),
        ("residual", {"dimension_names": None}, "dimension_names is None"),
    ],
)
def test_a_strange_array_is_refused(
    copy: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    edit(copy / name / "zarr.json", lambda document: document.update(changes))
    with pytest.raises(CacheError, match=message):
        open_cache(copy)


def test_giant_arrays_are_refused_before_any_memory_is_taken(copy: Path) -> None:
    for name in open_cache(copy).fields:
        edit(copy / name / "zarr.json", lambda array: array["shape"].__setitem__(0, 10**12))
    with pytest.raises(CacheError, match="claims 1000000000000 samples by 2 views"):
        open_cache(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": 7}, "commits chunk 7; the cache has 3"),
        ({"samples": [0, 4]}, r"commits samples \[0, 4\]; chunk 1 has \[4, 8\]"),
        ({"views": [0, 5]}, "commits view 5; the cache has 2"),
        ({"views": 0}, "is no commit: TypeError"),
        ({"files": []}, "is no commit: AttributeError"),
        ({"files": {"residual/c.1.0.0.0.0.0": {"bytes": 10**15}}}, "expected 100"),
        (
            {"files": {"residual/c.1.0.0.0.0.0": {"bytes": 100, "crc32c": "f" * 9}}},
            "ValueError: crc32c",
        ),
    ],
)
def test_a_strange_commit_is_refused(copy: Path, changes: dict[str, Any], message: str) -> None:
    path = copy / "commits" / "1.json"
    document = json.loads(path.read_bytes())
    del document["crc32c"]
    path.write_bytes(seal(document | changes))
    with pytest.raises(CacheError, match=message):
        open_cache(copy)


def test_a_samples_table_of_another_length_is_refused(copy: Path, tmp_path: Path) -> None:
    full_cache(tmp_path / "other", count=11)
    shutil.copy(tmp_path / "other" / "samples.parquet", copy)
    with pytest.raises(CacheError, match="has 11 rows, the arrays have 10"):
        _ = open_cache(copy).samples


def test_fields_of_one_byte_and_of_one_value(tmp_path: Path) -> None:
    clip = Field("clip/x3d_s", ("frame", "colour"), (2, 3), "uint8")
    loss = Field("vit/loss", (), (), "float32")
    path = full_cache(tmp_path / "c", count=5, views=1, fields=(clip, loss))
    rows = open_cache(path).read([4, 0], [0, 0])
    expected = expected_rows(np.array([4, 0]), np.array([0, 0]), (clip, loss))
    np.testing.assert_array_equal(rows["clip/x3d_s"], expected["clip/x3d_s"], strict=True)
    np.testing.assert_array_equal(rows["vit/loss"], expected["vit/loss"], strict=True)
