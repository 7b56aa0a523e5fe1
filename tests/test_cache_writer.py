"""Making, filling, interrupting, resuming, growing a cache; others' tools read it alike."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr

from cache import (
    CacheError,
    Field,
    IdentityMismatch,
    fingerprint,
    is_cache,
    open_cache,
    open_writer,
)
from cache_making import (
    FIELDS,
    IDENTITY,
    PROJECTION,
    InterruptionError,
    chunk_arrays,
    contents,
    expected_rows,
    fill_cache,
    full_cache,
    full_disk,
    interrupt_at,
    make_cache,
    samples_table,
    whole,
)

ROOT = Path(__file__).parent.parent

# zarr warns of each file in a group's folder that is none of its own.
others_files = pytest.mark.filterwarnings("ignore:Object at .* is not recognized")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache of 10 samples in 2 views in 3 chunks; to be read only."""
    return full_cache(tmp_path_factory.mktemp("full") / "tiny.cache")


def all_rows() -> dict[str, np.ndarray[Any, Any]]:
    """What `full` holds, (10, 2, ...) each."""
    samples, views = np.divmod(np.arange(20), 2)
    rows = expected_rows(samples, views)
    return {name: values.reshape(10, 2, *values.shape[1:]) for name, values in rows.items()}


# --- other tools -------------------------------------------------------------------------------


def test_plain_zarr_reads_it(full: Path) -> None:
    group = zarr.open_group(full, mode="r")
    for name, values in all_rows().items():
        np.testing.assert_array_equal(group[name][...], values, strict=True)
    for name, values in PROJECTION.items():
        np.testing.assert_array_equal(group["projection"][name][...], values, strict=True)
    ours = group.attrs["dualkd"]
    assert ours["format_version"] == 1
    assert ours["identity"] == IDENTITY
    assert ours["fingerprint"] == fingerprint(IDENTITY)
    assert ours["provenance"] == {"command": "pytest"}


@others_files
@pytest.mark.parametrize(
    ("group", "names"),
    [
        (None, {"residual", "status", "input_digest", "views"}),
        ("vit", {"pooled"}),
        ("vit/logits", {"action"}),
    ],
)
def test_xarray_reads_each_group(full: Path, group: str | None, names: set[str]) -> None:
    with xr.open_zarr(full, group=group, consolidated=False, chunks=None) as dataset:
        assert set(dataset.data_vars) == names
        for name in names:
            expected = all_rows()[f"{group}/{name}" if group else name]
            np.testing.assert_array_equal(dataset[name].values, expected, strict=True)
            assert dataset[name].dims[:2] == ("sample", "view")
        if group is None:
            assert dataset["residual"].dims[2:] == ("channel", "time", "height", "width")
            assert dataset["status"].attrs["flag_meanings"].split()[1] == "valid"
            assert dataset["views"].attrs["columns"][0] == "centre_sec"


def test_xarray_reads_the_projection(full: Path) -> None:
    with xr.open_dataset(full, engine="zarr", group="projection", consolidated=False) as dataset:
        np.testing.assert_array_equal(dataset["vit_weight"].values, PROJECTION["vit_weight"])


def test_pyarrow_reads_the_samples(full: Path) -> None:
    table = pq.read_table(full / "samples.parquet")
    assert table.equals(samples_table(10), check_metadata=True)


def test_a_chunk_file_is_the_raw_array_and_four_bytes(full: Path) -> None:
    content = (full / "residual" / "c.2.1.0.0.0.0").read_bytes()
    data, checksum = content[:-4], content[-4:]
    values = np.frombuffer(data, "<f2").reshape(4, 1, 2, 2, 1, 3)
    np.testing.assert_array_equal(values[:2, 0], all_rows()["residual"][8:, 1])
    assert np.isnan(values[2:]).all()  # the last chunk has two samples only
    assert int.from_bytes(checksum, "little") == google_crc32c.value(data)


def test_commit_names_every_file_with_its_checksum(full: Path) -> None:
    commit = json.loads((full / "commits" / "1.json").read_bytes())
    assert (commit["chunk"], commit["views"], commit["samples"]) == (1, [0, 1], [4, 8])
    counts = {"missing": 0, "valid": 6, "unreadable_video": 1, "non_finite_output": 1}
    assert commit["statuses"] == {"status": counts}
    assert commit["host"] == socket.gethostname()
    assert commit["pid"] == os.getpid()
    assert commit["packages"]["zarr"] == zarr.__version__
    assert len(commit["files"]) == 2 * 6
    for key, entry in commit["files"].items():
        content = (full / key).read_bytes()
        assert entry["bytes"] == len(content)
        assert int(entry["crc32c"], 16) == google_crc32c.value(content[:-4])


def test_chunks_of_nothing_but_fill_values_are_written(tmp_path: Path) -> None:
    clip = Field("clip", ("colour",), (3,), "uint8")
    with make_cache(tmp_path / "c", count=4, views=1, fields=(clip,)) as writer:
        arrays = chunk_arrays(writer, 0, (0,))
        arrays["clip"][:] = 0
        writer.write_chunk(0, arrays)
    assert (tmp_path / "c" / "clip" / "c.0.0.0").read_bytes() == bytes(12) + (
        google_crc32c.value(bytes(12)).to_bytes(4, "little")
    )


# --- making ------------------------------------------------------------------------------------


def test_a_new_cache_holds_nothing(tmp_path: Path) -> None:
    with make_cache(tmp_path / "deep" / "c") as writer:
        assert writer.pending() == [whole(chunk, (0, 1)) for chunk in range(3)]
        assert [writer.sample_range(chunk) for chunk in range(3)] == [
            range(4),
            range(4, 8),
            range(8, 10),
        ]
    group = zarr.open_group(tmp_path / "deep" / "c", mode="r")
    assert not group["status"][...].any()
    assert np.isnan(group["vit/pooled"][...]).all()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["c"]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: path.write_text("notes"), "is a file; a cache is a folder"),
        (lambda path: (path / "photos").mkdir(parents=True), "other files and no cache"),
        (lambda path: full_cache(path, count=2), "already holds a cache; run extract on it"),
    ],
)
def test_a_taken_place_is_refused_and_left_alone(
    tmp_path: Path, prepare: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "c"
    prepare(path)
    before = contents(path) if path.is_dir() else path.read_text()
    with pytest.raises(CacheError, match=message):
        make_cache(path)
    assert (contents(path) if path.is_dir() else path.read_text()) == before


def test_an_empty_folder_is_a_place(tmp_path: Path) -> None:
    make_cache(tmp_path).close()
    assert is_cache(tmp_path)


def test_an_interrupted_making_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make_cache(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_making_left_is_swept_but_not_another_ones_work(tmp_path: Path) -> None:
    left = tmp_path / ".c.0123abcd.making" / "vit"
    left.mkdir(parents=True)
    other = tmp_path / ".other.0123abcd.making"
    other.mkdir()
    make_cache(tmp_path / "c").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.0123abcd.making", "c"]


VERB = Field("vit/logits/verb", ("class",), (97,), "float16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identity": {"dataset": "x"}}, r"identity\['format_version'\] is None, expected 1"),
        ({"identity": {**IDENTITY, "x": float("nan")}}, "not plain JSON"),
        ({"provenance": {"when": object()}}, "not plain JSON"),
        ({"views": 0}, "views is 0, expected at least 1"),
        ({"chunk_samples": 0}, "chunk_samples is 0, expected at least 1"),
        ({"samples": samples_table(0)}, "nothing to cache"),
        ({"fields": (VERB, VERB)}, "'vit/logits/verb' is given twice"),
        ({"fields": (Field("status", (), (), "uint8"),)}, "'status' is given twice .*by itself"),
        (
            {"fields": (VERB, Field("vit/logits", ("class",), (3,), "float16"))},
            "'vit/logits/verb' would lie inside field 'vit/logits'",
        ),
        (
            {"fields": (VERB, Field("vit/logits/noun", ("class",), (300,), "float16"))},
            "dimension 'class' has 300 values in field 'vit/logits/noun' and 97 .* 'class_noun'",
        ),
        ({"projection": {"w": np.zeros(3)}}, "projection 'w' is float64 .* expected float32"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CacheError, match=message):
        make_cache(tmp_path / "c", **changes)
    assert list(tmp_path.iterdir()) == []


# --- writing -----------------------------------------------------------------------------------


def test_what_has_no_commit_does_not_exist(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c") as writer:
        writer.write_chunk(1, chunk_arrays(writer, 1, (1,)), views=[1])
        assert writer.pending() == [
            whole(0, (0, 1)),
            whole(1, (0,)),
            whole(2, (0, 1)),
        ]
        status = open_cache(tmp_path / "c").status
        assert np.argwhere(status).tolist() == [[4, 1], [5, 1], [6, 1], [7, 1]]
        writer.write_chunk(1, chunk_arrays(writer, 1, (0,)))  # all that is pending, by default
    assert sorted(path.name for path in (tmp_path / "c" / "commits").iterdir()) == [
        "1.1.json",
        "1.json",
    ]


def test_a_row_is_written_once(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c") as writer:
        writer.write_chunk(0, chunk_arrays(writer, 0, (0,)), views=[0])
        with pytest.raises(CacheError, match=r"already committed for views \[0\]"):
            writer.write_chunk(0, chunk_arrays(writer, 0, (0, 1)), views=[0, 1])
        writer.write_chunk(0, chunk_arrays(writer, 0, (1,)))
        with pytest.raises(CacheError, match=r"chunk 0 of .* has no pending views"):
            writer.write_chunk(0, {})


def spoil(name: str, value: object, at: tuple[int, int] = (1, 0)) -> Callable[[Any], None]:
    """A change of one row's values."""

    def change(arrays: dict[str, Any]) -> None:
        arrays[name][at] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("residual"), "fields missing: residual; unknown: none"),
        (lambda a: a.update(extra=a["status"]), "missing: none; unknown: extra"),
        (
            lambda a: a.update({"vit/pooled": a["vit/pooled"].astype("f4")}),
            r"'vit/pooled' is float32 of shape \(4, 2, 5\), expected float16 of \(4, 2, 5\)",
        ),
        (
            lambda a: a.update({"residual": a["residual"][:3]}),
            r"'residual' is float16 of shape \(3, 2, 2, 2, 1, 3\), expected float16 of \(4,",
        ),
        (spoil("status", 0, (0, 0)), r"statuses are \[0, 1, 2, 3\], not 1 … 3"),
        (spoil("status", 4, (0, 0)), r"statuses are \[1, 2, 3, 4\], not 1 … 3"),
        (spoil("vit/pooled", np.inf, (0, 1)), "of sample 4, view number 1 .* is not finite"),
        (spoil("views", np.nan, (0, 0)), "'views' of sample 4, view number 0 .* is not finite"),
        (spoil("vit/pooled", 0), "of sample 5, .* is not all NaN .*status is unreadable_video"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    with make_cache(tmp_path / "c") as writer:
        arrays = chunk_arrays(writer, 1, (0, 1))
        change(arrays)
        with pytest.raises(CacheError, match=message):
            writer.write_chunk(1, arrays)
        assert len(writer.pending()) == 3


def test_views_of_a_failure_may_tell_what_was_tried(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c") as writer:
        arrays = chunk_arrays(writer, 1, (0, 1))
        arrays["views"][1, 0] = np.nan
        writer.write_chunk(1, arrays)
    assert np.isfinite(open_cache(tmp_path / "c").read([6], [1], ["views"])["views"]).all()


@pytest.mark.parametrize("views", [[2], [-1], [0, 0]])
def test_views_must_exist(tmp_path: Path, views: list[int]) -> None:
    with make_cache(tmp_path / "c") as writer, pytest.raises(CacheError, match="different ones"):
        writer.write_chunk(0, {}, views=views)


def test_chunks_must_exist(tmp_path: Path) -> None:
    with make_cache(tmp_path / "c") as writer, pytest.raises(CacheError, match="no chunk 3: 0 … 2"):
        writer.write_chunk(3, {})


def test_resume_refuses_another_identity(full: Path) -> None:
    with pytest.raises(IdentityMismatch, match=r"dataset: cache \{.*\}, wanted \"k400\""):
        open_writer(full, identity={**IDENTITY, "dataset": "k400"})


def test_resume_needs_a_cache(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"none does not exist; a cache is a folder"):
        open_writer(tmp_path / "none", identity=IDENTITY)
    with pytest.raises(CacheError, match="is no cache"):
        open_writer(tmp_path, identity=IDENTITY)


# --- interruptions -----------------------------------------------------------------------------


def test_an_interruption_at_any_point_loses_at_most_the_chunk_in_flight(tmp_path: Path) -> None:
    making: dict[str, Any] = {"count": 6, "views": 1, "fields": FIELDS[1:2]}
    undisturbed = contents(full_cache(tmp_path / "undisturbed", **making))
    with make_cache(tmp_path / "begun", **making) as writer:
        writer.write_chunk(0, chunk_arrays(writer, 0, (0,)))
    first = open_cache(tmp_path / "begun").read(range(4), [0] * 4)
    lost = kept = 0
    for point in itertools.count():
        path = tmp_path / f"at-{point}"
        shutil.copytree(tmp_path / "begun", path)
        with open_writer(path, identity=IDENTITY) as writer, pytest.MonkeyPatch.context() as patch:
            arrays = chunk_arrays(writer, 1, (0,))
            interrupt_at(point, patch)
            try:
                writer.write_chunk(1, arrays)
                break
            except InterruptionError:
                pass
        cache = open_cache(path)
        for name, values in cache.read(range(4), [0] * 4).items():
            np.testing.assert_array_equal(values, first[name])
        lost, kept = lost + (cache.coverage < 1), kept + (cache.coverage == 1)
        with open_writer(path, identity=IDENTITY) as writer:
            assert len(writer.pending()) == (cache.coverage < 1)
            fill_cache(writer)
        assert contents(path) == undisturbed
        shutil.rmtree(path)
    # Everything before the rename that publishes is lost, everything after it is kept.
    assert lost > 20
    assert kept == 2


def run_python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from cache import open_writer
    from cache_making import IDENTITY, fill_cache

    path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    holder = Path if hasattr(Path, name) else os
    original = getattr(holder, name)

    def kill(*args, **kwargs):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    writer = open_writer(path, identity=IDENTITY)
    setattr(holder, name, kill)
    fill_cache(writer)
"""


@pytest.mark.parametrize(
    ("function", "count", "leftover"),
    [
        # Of 12 files of a chunk: zarr puts each in its place, then the commit moves it in.
        ("replace", 12 + 12 + 3, ".staging/*/**/c.1.*.partial"),  # inside a file of the second
        ("replace", 12 + 12 + 12 + 3, ".staging/*/**/c.1.*"),  # while it is moved in
        ("rename", 1, "commits/.*.tmp"),  # before the second commit is published
    ],
)
def test_a_killed_process_loses_at_most_the_chunk_in_flight(
    tmp_path: Path, full: Path, function: str, count: int, leftover: str
) -> None:
    path = tmp_path / "c"
    make_cache(path).close()
    killed = run_python(KILLED, path, function, count)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [file for file in path.glob(leftover) if file.is_file()]
    assert open_cache(path).coverage == 0.4
    with open_writer(path, identity=IDENTITY) as writer:  # and no lock is left
        assert [work.chunk for work in writer.pending()] == [1, 2]
        assert not [file for file in path.rglob("*") if file.name.endswith((".partial", ".tmp"))]
        assert not list((path / ".staging").iterdir())
        assert not list(path.glob("status/c.1.*"))
        fill_cache(writer)
    assert contents(path) == contents(full)


def test_a_sweep_leaves_other_peoples_files(tmp_path: Path, full: Path) -> None:
    path = tmp_path / "c"
    shutil.copytree(full, path)
    (path / "vit" / "pooled" / "notes.txt").write_text("mine")
    (path / "vit" / "pooled" / "c.9.9.0").write_text("no commit names it")
    open_writer(path, identity=IDENTITY).close()
    assert (path / "vit" / "pooled" / "notes.txt").exists()
    assert not (path / "vit" / "pooled" / "c.9.9.0").exists()


def test_garbage_in_the_place_of_a_chunk_file_does_no_harm(tmp_path: Path, full: Path) -> None:
    path = tmp_path / "c"
    with make_cache(path) as writer:
        (path / "vit" / "pooled" / "c.2.0.0").write_bytes(b"garbage")
        fill_cache(writer)
    assert contents(path) == contents(full)


@pytest.mark.parametrize(("holder", "name"), [(os, "fsync"), (Path, "replace"), (Path, "rename")])
def test_a_full_disk_says_so_and_is_resumable(
    tmp_path: Path, full: Path, monkeypatch: pytest.MonkeyPatch, holder: object, name: str
) -> None:
    path = tmp_path / "c"
    with make_cache(path) as writer:
        writer.write_chunk(0, chunk_arrays(writer, 0, (0, 1)))
        with monkeypatch.context() as patch:
            patch.setattr(holder, name, full_disk)
            with pytest.raises(CacheError, match=r"no space left .* chunk 1 is not written") as no:
                fill_cache(writer)
        assert "run the same command again" in str(no.value)
    with open_writer(path, identity=IDENTITY) as writer:
        fill_cache(writer)
    assert contents(path) == contents(full)


def test_a_full_disk_leaves_nothing_of_a_cache_in_the_making(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CacheError, match=r"no space left for .*/c: it is not made\. Free some"):
        make_cache(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_the_growing_and_nothing_is_lost(
    tmp_path: Path, full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rename = Path(shutil.copytree(full, tmp_path / "c")), Path.rename

    def full_after_manifest(source: Path, target: Path) -> Path:
        return rename(source, target) if target.name == "manifest.json" else full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full_after_manifest)
        message = r"no space left .* it does not grow, what was there stands\. Free some space"
        with (
            open_writer(path, identity=IDENTITY) as writer,
            pytest.raises(CacheError, match=message),
        ):
            writer.add_views(1)
        patch.setattr(Path, "rename", full_disk)
        with pytest.raises(
            CacheError, match=r"no space left .* cannot be finished, what was there"
        ):
            open_writer(path, identity=IDENTITY)
    open_writer(path, identity=IDENTITY).close()
    assert contents(path) == contents(full)
