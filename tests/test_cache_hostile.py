"""Caches come from other people: whatever one claims, it is read or refused, and nothing else.

No other error than ours, no file opened outside the cache's folder, no memory beyond what its files
are worth, nothing written.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache import CacheError, describe, open_cache, open_writer, tables, verify_cache
from cache.sealed import seal
from cache_making import IDENTITY, contents, full_cache, samples_table, sign

JSON_FILES = (
    "zarr.json",
    "status/zarr.json",
    "vit/pooled/zarr.json",
    "projection/vit_weight/zarr.json",
    "manifest.json",
    "commits/0.json",
)
SEALED = ("manifest.json", "commits/0.json")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_cache(tmp_path_factory.mktemp("honest") / "c")


def read_all(path: Path) -> None:
    """All that a reader does; only `CacheError` may come out of any of it."""
    with short_refusal():
        cache = open_cache(path)
        uses = (
            lambda: cache.samples,
            lambda: cache.projection,
            lambda: cache.status,
            lambda: cache.failures,
            lambda: cache.read([0, 1], [0, 0]),
            lambda: describe(path),
        )
        for use in uses:
            with short_refusal():
                use()


def exercise(path: Path) -> None:
    """Read, and verify."""
    read_all(path)
    with short_refusal():
        verify_cache(path)


@contextmanager
def short_refusal() -> Iterator[None]:
    """Whatever goes wrong is ours, with a message that fits a screen."""
    try:
        yield
    except CacheError as error:
        if not 0 < len(str(error)) < 20_000:
            raise


@contextmanager
def opened_files() -> Iterator[list[Path]]:
    """The paths that are opened meanwhile, by anyone in this process."""
    seen: list[Path] = []
    _LISTENERS.append(seen)
    try:
        yield seen
    finally:
        _LISTENERS.remove(seen)


_LISTENERS: list[list[Path]] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _LISTENERS and event == "open" and isinstance(arguments[0], str | os.PathLike):
        for seen in _LISTENERS:
            seen.append(Path(arguments[0]))


sys.addaudithook(_listen)

NUMBERS = (-1, 0, 1, 2**31, 2**63, 10**30, 1.5)
TEXTS = ("", "..", "/etc/passwd", "../../x", "float16", "object", "x" * 5000, "\x00", "NaN")
NESTED = ("[]", "{}", "[[]]", '["..", "/"]', '{"a": {"a": {"a": []}}}', "null", "true")
ODD = st.sampled_from([json.dumps(value) for value in (*NUMBERS, *TEXTS)] + list(NESTED))


def nodes(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all values inside a JSON document."""
    yield way
    items = value.items() if isinstance(value, dict) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield from nodes(inner, (*way, key))


def changed(document: Any, way: tuple[Any, ...], value: Any, *, remove: bool) -> Any:
    if not way:
        return value
    at = document
    for key in way[:-1]:
        at = at[key]
    if remove:
        del at[way[-1]]
    else:
        at[way[-1]] = value
    return document


@pytest.mark.parametrize("name", JSON_FILES)
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_claim_in_the_metadata_is_read_or_refused(
    honest: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    path = tmp_path / "c"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(honest, path)
    document = json.loads((path / name).read_bytes())
    document.pop("crc32c", None)
    for _ in range(data.draw(st.integers(1, 3))):
        way = data.draw(st.sampled_from(list(nodes(document))))
        document = changed(
            document, way, json.loads(data.draw(ODD)), remove=data.draw(st.booleans())
        )
    sealable = name in SEALED and isinstance(document, dict)
    (path / name).write_bytes(seal(document) if sealable else json.dumps(document).encode())
    before = contents(path, commits=True)
    exercise(path)
    assert contents(path, commits=True) == before


@pytest.mark.parametrize("name", [*JSON_FILES, "samples.parquet"])
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(junk=st.binary(max_size=200), at=st.floats(0, 1), whole=st.booleans())
def test_any_bytes_are_read_or_refused(
    honest: Path, tmp_path: Path, name: str, junk: bytes, at: float, whole: bool
) -> None:
    path = tmp_path / "c"
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(honest, path)
    content = (path / name).read_bytes()
    place = round(at * len(content))
    (path / name).write_bytes(junk if whole else content[:place] + junk + content[place + 9 :])
    exercise(path)


@pytest.mark.parametrize("depth", [1_000, 200_000])
@pytest.mark.parametrize("name", ["zarr.json", "commits/0.json", "status/zarr.json"])
def test_deep_nesting_is_refused(honest: Path, tmp_path: Path, name: str, depth: int) -> None:
    path = shutil.copytree(honest, tmp_path / "c")
    (path / name).write_text('{"attributes": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(CacheError):
        open_cache(path)
    exercise(path)


@pytest.mark.parametrize("name", ["zarr.json", "commits/0.json", "manifest.json"])
def test_a_giant_document_is_not_even_read(honest: Path, tmp_path: Path, name: str) -> None:
    path = shutil.copytree(honest, tmp_path / "c")
    with (path / name).open("r+b") as file:
        file.truncate(200 * 2**30)  # sparse: it takes no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read_all(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    "shape", [[10**18, 2], [10, 10**18], [2**31, 2**31], [2**40, 1], [10, 2**25]]
)
def test_giant_shapes_take_no_memory(honest: Path, tmp_path: Path, shape: list[int]) -> None:
    path = shutil.copytree(honest, tmp_path / "c")
    for file in path.rglob("zarr.json"):
        document = json.loads(file.read_text())
        if "sample" in (document.get("dimension_names") or []):
            document["shape"][:2] = shape
            file.write_text(json.dumps(document))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    exercise(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


LINKS = (
    ("vit/pooled/c.0.0.0", "file"),
    ("status/c.0.0", "file"),
    ("samples.parquet", "file"),
    ("zarr.json", "file"),
    ("status/zarr.json", "file"),
    ("commits/0.json", "file"),
    ("projection/vit_weight/c.0.0", "file"),
    ("vit/pooled", "folder"),
    ("vit", "folder"),
    ("commits", "folder"),
    ("projection", "folder"),
    ("projection/vit_weight", "folder"),
)


@pytest.mark.parametrize(("name", "kind"), LINKS)
def test_a_link_out_of_the_folder_is_refused_not_followed(
    honest: Path, tmp_path: Path, name: str, kind: str
) -> None:
    """The target is the right file, outside: only the link is wrong."""
    path = shutil.copytree(honest, tmp_path / "c")
    outside = tmp_path / "outside"
    shutil.move(path / name, outside)
    (path / name).symlink_to(outside, target_is_directory=kind == "folder")

    def use() -> None:
        cache = open_cache(path)
        _ = cache.samples, cache.projection, cache.status, cache.read([0], [0])

    with opened_files() as files, pytest.raises(CacheError, match="link"):
        use()
    assert not [file for file in files if outside in (file, *file.parents)]
    exercise(path)


def disguised(kind: str, folder: Path, right: Path) -> Path:
    """Something that looks like a file of a DVC cache and is none; the target for a link."""
    place = folder / "files" / "md5" / "ab" / ("c" * 30)
    names = {
        "short": place.with_name("c" * 29),
        "upper case": place.with_name("C" * 30),
        "of a folder": place.with_name("c" * 30 + ".dir"),
        "another hash": folder / "files" / "etag" / "ab" / ("c" * 30),
        "led back": folder / "files" / "md5" / "ab" / ".." / ("c" * 30),
    }
    place = names.get(kind, place)
    (folder / "files" / "md5" / "ab").mkdir(parents=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a chain":
        place.symlink_to(right)
    elif kind == "a folder":
        place.mkdir()
    elif kind == "a pipe":
        os.mkfifo(place)
    elif kind != "nothing":
        shutil.copyfile(right, place)
    return place


@pytest.mark.parametrize(
    "kind",
    [
        *("a chain", "a folder", "a pipe", "nothing"),
        *("short", "upper case", "of a folder", "another hash", "led back"),
    ],
)
@pytest.mark.parametrize("name", ["status/c.0.0", "zarr.json", "commits/0.json"])
def test_a_link_that_only_looks_like_one_of_dvc_is_refused(
    honest: Path, tmp_path: Path, name: str, kind: str
) -> None:
    path = shutil.copytree(honest, tmp_path / "c")
    target = disguised(kind, tmp_path / "outside", honest / name)
    (path / name).unlink()
    (path / name).symlink_to(target)
    with opened_files() as files, pytest.raises(CacheError, match=r"is a link to .*files"):
        _ = open_cache(path).status
    assert not [file for file in files if tmp_path / "outside" in file.parents]
    if name != "zarr.json":
        found = [finding for finding in verify_cache(path).findings if finding.file == name]
        assert any("no file of a DVC cache" in finding.what for finding in found)
    exercise(path)


@pytest.mark.parametrize("name", ["vit", "vit/pooled", "commits"])
def test_a_link_of_dvc_in_the_place_of_a_folder_leads_nowhere(
    honest: Path, tmp_path: Path, name: str
) -> None:
    path = shutil.copytree(honest, tmp_path / "c")
    target = disguised("a file", tmp_path / "outside", honest / "zarr.json")
    shutil.rmtree(path / name)
    (path / name).symlink_to(target)
    exercise(path)
    assert not verify_cache(path).ok


def test_a_samples_table_of_another_length_is_refused(honest: Path, tmp_path: Path) -> None:
    path = shutil.copytree(honest, tmp_path / "c")
    pq.write_table(samples_table(11), path / "samples.parquet")
    with pytest.raises(CacheError, match="11 rows"):
        _ = open_cache(path).samples


def test_a_table_that_unpacks_to_more_than_the_bound_is_refused(
    honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_MAX_TABLE_BYTES", 2**20)
    path = shutil.copytree(honest, tmp_path / "c")
    giant = pa.array([f"{row}" + "x" * 2**18 for row in range(10)])
    table = samples_table(10).set_column(1, "path", giant)
    pq.write_table(table, path / "samples.parquet", compression="zstd")
    assert (path / "samples.parquet").stat().st_size < 2**17
    with pytest.raises(CacheError, match="unpack"):
        _ = open_cache(path).samples
    exercise(path)


def test_values_that_are_not_finite_are_found(honest: Path, tmp_path: Path) -> None:
    """A hostile maker has the right checksums; `verify` reads the values too."""
    path = shutil.copytree(honest, tmp_path / "c")
    file = "vit/pooled/c.0.0.0"
    data = np.frombuffer((path / file).read_bytes()[:-4], "<f2").copy()
    data[3] = np.inf
    sign(path, file, data.tobytes())
    found = verify_cache(path)
    assert any("finite" in finding.what for finding in found.findings)


@pytest.mark.parametrize(
    "name",
    ["samples.parquet", "commits/0.json", "status/c.0.0", "residual/zarr.json", "manifest.json"],
)
def test_a_pipe_in_the_place_of_a_file_is_never_opened(tmp_path: Path, name: str) -> None:
    path = full_cache(tmp_path / "c")
    (path / name).unlink()
    os.mkfifo(path / name)
    if name != "manifest.json":
        with pytest.raises(CacheError, match="is neither a file nor a folder"):
            describe(path)
    assert not verify_cache(path).ok
    if name != "status/c.0.0":  # which a writer does not read
        with pytest.raises(CacheError):
            open_writer(path, identity=IDENTITY).close()


@pytest.mark.parametrize(
    "added", [{"old": {}}, {"vit": {}}, {"../x": {}}, {"a/b": {}}, [], {"x": 1}]
)
def test_added_teachers_must_have_their_fields(tmp_path: Path, added: object) -> None:
    path = full_cache(tmp_path / "c")
    document = json.loads((path / "zarr.json").read_bytes())
    document["attributes"]["dualkd"]["added"] = added
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(CacheError, match=r"added|cannot name a field"):
        open_cache(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": [0]}, "parts"),
        ({"parts": []}, "parts"),
        ({"parts": [10**18]}, "parts"),
        ({"parts": [2**31, 2**31]}, "at most"),
        ({"parts": [1] * 2**21}, "parts"),
        ({"parts": [7, 7]}, "shape"),
        ({"parts": "10"}, "parts"),
        ({"parts": [True]}, "parts"),
    ],
)
def test_odd_parts_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = full_cache(tmp_path / "c")
    document = json.loads((path / "zarr.json").read_bytes())
    document["attributes"]["dualkd"] |= change
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(CacheError, match=message):
        open_cache(path)


@pytest.mark.parametrize(("name", "chunk"), [("01.json", 1), ("1.json", True), ("1.json", 1.0)])
def test_a_commits_chunk_is_spelt_as_its_name(tmp_path: Path, name: str, chunk: object) -> None:
    path = full_cache(tmp_path / "c")
    document = json.loads((path / "commits" / "1.json").read_bytes())
    del document["crc32c"]
    document["chunk"] = chunk
    (path / "commits" / "1.json").unlink()
    (path / "commits" / name).write_bytes(seal(document))
    with pytest.raises(CacheError, match=rf"{name} (commits chunk|is no commit)"):
        open_cache(path)
