"""More views, samples, fields and teachers: nothing that stands is touched, or lost on the way."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from cache import (
    CacheError,
    CacheWriter,
    Field,
    FieldError,
    Kind,
    PendingChunk,
    describe,
    open_cache,
    open_writer,
    repair_cache,
    verify_cache,
)
from cache.manifest import read_manifest
from cache_making import (
    ADDED_CLIP,
    FIELDS,
    GROWTHS,
    IDENTITY,
    SLOW,
    TEACHER,
    InterruptionError,
    add_samples,
    chunk_arrays,
    contents,
    expected_rows,
    fill_cache,
    full_cache,
    interrupt_at,
    make_cache,
    more_samples,
    samples_table,
    whole,
)

# zarr says of numcodecs' filters that they are no part of its format, and warns of other files.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in"),
    pytest.mark.filterwarnings("ignore:Object at .* is not recognized"),
]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 samples in 2 views in 3 chunks, the last of which has room for 2 more; read only."""
    return full_cache(tmp_path_factory.mktemp("full") / "tiny.cache")


@pytest.fixture
def path(tmp_path: Path, full: Path) -> Path:
    """The same, to be grown."""
    return Path(shutil.copytree(full, tmp_path / "c"))


def standing(path: Path) -> dict[str, bytes]:
    """All that never changes: everything but the metadata."""
    return {
        name: content
        for name, content in contents(path, commits=True).items()
        if not name.endswith(("zarr.json", "manifest.json"))
    }


def check_all_rows(path: Path) -> None:
    """Every row of a complete cache is the one of the formula."""
    cache = open_cache(path, blocks=True)
    samples, views = np.divmod(np.arange(cache.num_samples * cache.num_views), cache.num_views)
    expected = expected_rows(samples, views, tuple(cache.fields.values()))
    clip = expected.get(ADDED_CLIP.name)
    for name, values in cache.read(samples, views).items():
        codec = cache.fields[name].codec
        wanted = expected[name] if codec is None else codec.stored(expected[name])
        np.testing.assert_array_equal(values, wanted, err_msg=name)
    assert clip is None or clip.any()
    ids = cache.samples["sample_id"].to_pylist()
    assert ids == [f"id-{row}" for row in range(cache.num_samples)]


@pytest.mark.parametrize("kind", GROWTHS)
def test_growth_leaves_every_old_byte_alone(path: Path, kind: str) -> None:
    before = standing(path)
    with open_writer(path, identity=IDENTITY) as writer:
        assert writer.pending() == []
        GROWTHS[kind](writer)
        assert writer.pending()
        assert verify_cache(path).ok
        assert {name: standing(path)[name] for name in before} == before
        np.testing.assert_array_equal(
            open_cache(path).read([9, 0], [1, 0], ["vit/pooled"])["vit/pooled"],
            expected_rows(np.array([9, 0]), np.array([1, 0]))["vit/pooled"],
        )
        fill_cache(writer)
        assert writer.pending() == []
    after = standing(path)
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)
    proof = verify_cache(path)
    assert (proof.findings, proof.coverage) == ([], 1.0)
    check_all_rows(path)


def test_what_is_pending_after_growth(path: Path) -> None:
    with open_writer(path, identity=IDENTITY) as writer:
        writer.add_fields([ADDED_CLIP])
        writer.add_views(1)
        expected = []
        for chunk in range(3):
            expected += [
                PendingChunk(chunk, (0, 1), (ADDED_CLIP.name,)),
                whole(chunk, (2,), (*FIELDS, ADDED_CLIP)),
            ]
        assert writer.pending() == expected
        assert writer.pending([ADDED_CLIP.name])[0] == PendingChunk(
            0, (0, 1, 2), (ADDED_CLIP.name,)
        )
        assert writer.pending(["status"]) == [
            PendingChunk(chunk, (2,), ("status",)) for chunk in range(3)
        ]


@pytest.mark.parametrize("order", list(itertools.permutations(GROWTHS))[::3])
@pytest.mark.parametrize("filled", [True, False])
def test_growths_in_any_order_end_the_same(
    path: Path, order: tuple[str, ...], filled: bool
) -> None:
    for kind in order:
        with open_writer(path, identity=IDENTITY) as writer:
            GROWTHS[kind](writer)
            if filled:
                fill_cache(writer)
    with open_writer(path, identity=IDENTITY) as writer:
        fill_cache(writer)
    assert verify_cache(path).findings == []
    check_all_rows(path)


def test_samples_may_be_appended_again_and_again(path: Path) -> None:
    for first, count in ((10, 1), (11, 4), (15, 3)):
        with open_writer(path, identity=IDENTITY) as writer:
            writer.add_samples(more_samples(first, count))
    cache = open_cache(path)
    assert (cache.parts, cache.num_samples) == ((10, 1, 4, 3), 18)
    ranges = [range(0, 4), range(4, 8), range(8, 10), range(10, 11), range(11, 15), range(15, 18)]
    with open_writer(path, identity=IDENTITY) as writer:
        assert [writer.sample_range(chunk) for chunk in range(writer.num_chunks)] == ranges
        assert zarr.open_array(path / "status", mode="r").shape == (5 * 4 + 3, 2)
        fill_cache(writer)
    assert cache.chunks_of(np.arange(18)).tolist() == [
        chunk for chunk, samples in enumerate(ranges) for _ in samples
    ]
    check_all_rows(path)
    assert describe(path)["parts"] == [10, 1, 4, 3]


def test_plain_zarr_finds_appended_samples_by_the_parts(path: Path) -> None:
    with open_writer(path, identity=IDENTITY) as writer:
        add_samples(writer)
        fill_cache(writer)
    group = zarr.open_group(path, mode="r")
    about: Any = group.attrs["dualkd"]
    size = group["status"].chunks[0]
    places: list[int] = []
    for part in about["parts"]:
        start = -(-(places[-1] + 1) // size) * size if places else 0
        places += range(start, start + part)
    digests = group["input_digest"][:, 1][places]
    np.testing.assert_array_equal(digests, np.arange(15) * 10 + 1 + np.uint64(2**63))
    tables = [pq.read_table(path / name) for name in ("samples.parquet", "samples.1.parquet")]
    assert pa.concat_tables(tables)["sample_id"].to_pylist() == [f"id-{row}" for row in range(15)]
    assert (group["status"][10:12] == 0).all()  # nobody's


def test_growth_writes_what_zarrs_resize_writes(path: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(path, tmp_path / "other"))
    with open_writer(path, identity=IDENTITY) as writer:
        writer.add_views(3)
        add_samples(writer)
    for name in open_cache(path).fields:
        array = zarr.open_array(other / name, mode="r+")
        array.resize((17, 5, *array.shape[2:]))
        metadata = f"{name}/zarr.json"
        assert (path / metadata).read_bytes() == (other / metadata).read_bytes()


def test_new_arrays_are_those_that_a_new_cache_has(path: Path, tmp_path: Path) -> None:
    with open_writer(path, identity=IDENTITY) as writer:
        writer.add_fields([ADDED_CLIP])
    made = tmp_path / "made"
    make_cache(made, fields=(*FIELDS, ADDED_CLIP)).close()
    assert contents(path).keys() - contents(full_cache(tmp_path / "old")).keys() == {
        "clip/zarr.json",
        "clip/x3d/zarr.json",
    }
    for name, content in contents(made).items():
        if name.endswith("zarr.json"):
            assert (path / name).read_bytes() == content, name


@pytest.mark.parametrize("kind", GROWTHS)
def test_an_interrupted_growth_is_undone_or_taken_up(tmp_path: Path, full: Path, kind: str) -> None:
    grown = Path(shutil.copytree(full, tmp_path / "grown"))
    with open_writer(grown, identity=IDENTITY) as writer:
        GROWTHS[kind](writer)
    undisturbed, before, outcomes = contents(grown), contents(full), set()
    for point in itertools.count():
        path = Path(shutil.copytree(full, tmp_path / f"at-{point}"))
        with open_writer(path, identity=IDENTITY) as writer, pytest.MonkeyPatch.context() as patch:
            interrupt_at(point, patch)
            try:
                GROWTHS[kind](writer)
                break
            except InterruptionError:
                pass
        proof = verify_cache(path)
        assert proof.ok, proof.findings
        assert open_cache(path).read([9], [1], ["input_digest"])["input_digest"] == [2**63 + 91]
        assert open_cache(path).samples.num_rows == open_cache(path).num_samples
        with open_writer(path, identity=IDENTITY) as writer:
            assert {len(digests) for digests in read_manifest(path).values()} == {1}
            real = bool(writer.pending())
            outcomes.add(real)
            assert contents(path).keys() == (undisturbed if real else before).keys()
            if not real:
                GROWTHS[kind](writer)
        assert contents(path) == undisturbed
        shutil.rmtree(path)
    assert outcomes == {True, False}


def test_a_field_that_is_half_made_is_told(path: Path) -> None:
    with open_writer(path, identity=IDENTITY) as writer:
        writer.add_fields([ADDED_CLIP])
        work = writer.pending()[0]
        writer.write_chunk(0, chunk_arrays(writer, 0, work.views, work.fields))
    cache = open_cache(path)
    assert (cache.status > 0).all()
    assert (cache.status_of(ADDED_CLIP.name)[:4] > 0).all()
    assert (cache.status_of(ADDED_CLIP.name)[4:] == 0).all()
    assert cache.coverage == cache.coverage_by_field()[ADDED_CLIP.name] == 0.4
    assert cache.coverage_by_field()["status"] == 1.0
    assert verify_cache(path).coverage == 0.4
    with pytest.raises(CacheError, match=r"'id-4' .*field 'clip/x3d': nobody has made it yet"):
        cache.read([4], [0], [ADDED_CLIP.name])
    with pytest.raises(FieldError, match="no field 'clip/nothing'"):
        cache.status_of("clip/nothing")


def test_an_added_teacher_has_statuses_of_its_own(path: Path) -> None:
    with open_writer(path, identity=IDENTITY) as writer:
        writer.add_fields(SLOW, {"slow": TEACHER})
        for work in writer.pending():
            arrays = chunk_arrays(writer, work.chunk, work.views, work.fields)
            failed = arrays["slow/status"] != 1
            failed[0, 0] = True
            arrays["slow/status"][failed] = 3
            for name in ("slow/pooled", "slow/logits/action"):
                arrays[name][failed] = np.nan
            writer.write_chunk(work.chunk, arrays, work.views, failures={f"id-{work.chunk}": "bad"})
    cache = open_cache(path, blocks=True)
    assert cache.added == {"slow": {**TEACHER, "codecs": {SLOW[3].name: SLOW[3].codec.to_json()}}}
    assert cache.fingerprint == open_cache(path).fingerprint
    assert (cache.status[0, 0], cache.status_of("slow/pooled")[0, 0]) == (1, 3)
    assert (cache.status_of("slow/pooled") == cache.status_of("slow/status")).all()
    assert np.isnan(cache.read([0], [0], ["slow/pooled"])["slow/pooled"]).all()
    assert verify_cache(path).findings == []
    repaired = repair_cache(path, failed=True).dropped
    assert [work.commits for work in repaired] == [
        (f"commits/{chunk}.1.json",) for chunk in range(3)
    ]


def test_a_field_goes_with_the_statuses_that_it_goes_by(path: Path, full: Path) -> None:
    with open_writer(path, identity=IDENTITY) as writer:
        writer.add_fields([ADDED_CLIP])
        writer.add_fields(SLOW, {"slow": TEACHER})
        fill_cache(writer)
    whole_bytes = contents(path)
    damaged = path / "vit" / "pooled" / "c.1.0.0"
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    (dropped,) = repair_cache(path).dropped
    assert sorted(dropped.commits) == ["commits/1.1.json", "commits/1.json"]
    with open_writer(path, identity=IDENTITY) as writer:
        (work,) = writer.pending()
        assert set(work.fields) == set(open_cache(path).fields)
        fill_cache(writer)
    assert contents(path) == whole_bytes
    assert verify_cache(path).findings == []


@pytest.mark.parametrize("how", ["damaged", "missing", "missing with its files"])
def test_fields_without_their_first_commit_are_found_and_dropped(path: Path, how: str) -> None:
    with open_writer(path, identity=IDENTITY) as writer:
        writer.add_fields([ADDED_CLIP])
        fill_cache(writer)
    whole_bytes = contents(path)
    commit = path / "commits" / "1.json"
    commit.write_bytes(b"{}") if how == "damaged" else commit.unlink()
    if how == "missing with its files":
        for file in path.rglob("c.1.*"):
            if file.parent != path / ADDED_CLIP.name:
                file.unlink()
    kinds = {finding.kind for finding in verify_cache(path).findings}
    assert kinds == {Kind.COMMIT}
    (dropped,) = repair_cache(path).dropped
    assert "commits/1.1.json" in dropped.commits
    with open_writer(path, identity=IDENTITY) as writer:
        fill_cache(writer)
    assert contents(path) == whole_bytes
    assert verify_cache(path).findings == []


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        (lambda w: w.add_views(0), "0 views to add"),
        (lambda w: w.add_views(2**24), "and 1048576 chunks are read"),
        (lambda w: w.add_samples(samples_table(3)), "sample_id 'id-0' has 2 rows"),
        (lambda w: w.add_samples(more_samples(10, 0)), "is empty"),
        (lambda w: w.add_samples(more_samples(10, 2).drop(["split"])), "have the columns"),
        (lambda w: w.add_fields([ADDED_CLIP, ADDED_CLIP]), "'clip/x3d' is given twice"),
        (lambda w: w.add_fields([FIELDS[0]]), "'vit/logits/action' is given twice"),
        (lambda w: w.add_fields([Field("vit", (), (), "uint8")]), "would lie inside field 'vit'"),
        (lambda w: w.add_fields([SLOW[3]]), "a lossy codec is part of the identity"),
        (lambda w: w.add_fields(SLOW), "'slow/status' belongs to no teacher"),
        (lambda w: w.add_fields(SLOW[1:3], {"slow": TEACHER}), "slow/status one of them"),
        (
            lambda w: w.add_fields([Field("vit/status", (), (), "uint8")], {"vit": TEACHER}),
            "its fields must be new",
        ),
    ],
)
def test_growth_that_does_not_fit_is_refused_and_changes_nothing(
    path: Path, growth: Callable[[CacheWriter], None], message: str
) -> None:
    before = contents(path, commits=True)
    with open_writer(path, identity=IDENTITY) as writer:
        with pytest.raises(CacheError, match=message):
            growth(writer)
        assert writer.pending() == []
    assert contents(path, commits=True) == before


def test_fields_of_one_status_are_written_together(path: Path) -> None:
    with open_writer(path, identity=IDENTITY) as writer:
        writer.add_fields([ADDED_CLIP])
        writer.add_fields(SLOW, {"slow": TEACHER})
        arrays = chunk_arrays(writer, 0, (0, 1))
        with pytest.raises(CacheError, match=r"already committed for views \[0, 1\]"):
            writer.write_chunk(0, arrays, [0, 1])
        some = {name: arrays[name] for name in ("slow/status", "slow/pooled")}
        message = "fields missing: slow/input_digest, slow/logits/action; unknown: none"
        with pytest.raises(CacheError, match=message):
            writer.write_chunk(0, some)
        with pytest.raises(CacheError, match="fields missing: slow/status"):
            writer.write_chunk(0, {"slow/pooled": arrays["slow/pooled"]})
        writer.write_chunk(0, {ADDED_CLIP.name: arrays[ADDED_CLIP.name]})
        writer.add_views(1)
        with pytest.raises(CacheError, match="fields missing: status"):
            writer.write_chunk(0, {ADDED_CLIP.name: arrays[ADDED_CLIP.name][:, :1]}, [2])
        assert verify_cache(path).ok


def test_an_opened_cache_stays_as_it_was(path: Path) -> None:
    cache = open_cache(path)
    with open_writer(path, identity=IDENTITY) as writer:
        for growth in GROWTHS.values():
            growth(writer)
        fill_cache(writer)
    assert (cache.num_samples, cache.num_views, len(cache.samples)) == (10, 2, 10)
    assert cache.read([9], [1]).keys() == cache.fields.keys()
    assert open_cache(path).num_samples == 15
