"""Caches that travel by a shelf: nothing half there, only what lacks is moved, two become one."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from cache import (
    CacheError,
    ConflictError,
    DamagedError,
    FieldError,
    IdentityMismatch,
    Pulled,
    RowError,
    Selection,
    Shelved,
    TransferError,
    open_cache,
    open_writer,
    public_url,
    pull_cache,
    shelved,
    verify_cache,
)
from cache.pull import _Pull
from cache.remote import Remote
from cache.sealed import read_sealed, seal
from cache_making import (
    ADDED_CLIP,
    IDENTITY,
    SLOW,
    TEACHER,
    add_samples,
    chunk_arrays,
    compressed_cache,
    fill_cache,
    full_cache,
    full_disk,
    make_cache,
    sign,
)
from sharing_making import (
    FILES,
    check,
    full,
    grow,
    more_teachers,
    more_views,
    own,
    push,
    shelf,
)

__all__ = ["full", "shelf"]  # fixtures


def test_it_arrives_byte_for_byte_and_only_once(full: Path, shelf: str, tmp_path: Path) -> None:
    first, second = push(full, shelf), push(full, shelf)
    assert (first.files, first.standing, first.coverage) == (FILES, 0, 1.0)
    assert (second.files, second.standing, second.bytes) == (0, FILES, 0)
    (found,) = shelved(shelf)
    assert found.cache.url == first.url == f"{shelf}/tiny/{open_cache(full).fingerprint}"
    assert found.records[0].author == "ada"
    assert found.records[0].about == {"coverage": 1.0, "views": 2}
    copy = tmp_path / "copy"
    got = pull_cache(shelf, copy)
    chunk_bytes = sum(open_cache(full).bytes_by_field().values())
    assert got == Pulled(first.url, chunk_bytes, FILES, 0, 0)
    assert check(copy) == 1.0
    assert own(copy) == own(full)
    commits = {path.read_bytes() for path in (copy / "commits").iterdir()}
    assert commits == {path.read_bytes() for path in (full / "commits").iterdir()}
    again = pull_cache(shelf, copy)
    assert (again.files, again.bytes, again.standing) == (0, 0, FILES)


@pytest.mark.parametrize("address", ["", "/tiny", "/tiny/{}", "/tiny/{:.8}", "/tiny/{:.8}/"])
def test_a_cache_is_named_by_shelf_dataset_or_fingerprint(
    full: Path, shelf: str, tmp_path: Path, address: str
) -> None:
    push(full, shelf)
    pull_cache(shelf + address.format(open_cache(full).fingerprint), tmp_path / "copy")
    assert own(tmp_path / "copy") == own(full)


def test_different_caches_never_meet(full: Path, shelf: str, tmp_path: Path) -> None:
    identity = {**IDENTITY, "views": {"rule": "random", "seed": 8}}
    other = full_cache(tmp_path / "other", identity=identity)  # type: ignore[arg-type]
    push(full, shelf)
    push(other, shelf)
    with pytest.raises(CacheError, match="holds 2 caches; name one:") as caught:
        pull_cache(shelf, tmp_path / "copy")
    urls = [one.cache.url for one in shelved(shelf)]
    assert all(url in str(caught.value) for url in urls)
    for path in (full, other):
        copy = tmp_path / f"copy of {path.name}"
        pull_cache(f"{shelf}/tiny/{open_cache(path).fingerprint[:12]}", copy)
        assert own(copy) == own(path)
    with pytest.raises(IdentityMismatch, match=r"views\.seed: cache 8, wanted 7"):
        pull_cache(
            f"{shelf}/tiny/{open_cache(full).fingerprint}", tmp_path / f"copy of {other.name}"
        )


@pytest.mark.parametrize(
    ("change", "files"),
    [
        (more_views, 18),
        (add_samples, 24),
        (lambda writer: writer.add_fields([ADDED_CLIP]), 6),
        (more_teachers, 24),
    ],
)
def test_only_what_is_new_travels(
    full: Path, shelf: str, tmp_path: Path, change: Callable[[Any], None], files: int
) -> None:
    mine, copy = tmp_path / "mine", tmp_path / "copy"
    shutil.copytree(full, mine)
    push(mine, shelf)
    pull_cache(shelf, copy)
    grow(mine, change)
    done = push(mine, shelf)
    assert (done.files, done.standing) == (files, FILES)
    got = pull_cache(shelf, copy)
    assert (got.files, got.standing) == (files, FILES)
    assert check(copy) == 1.0
    assert own(copy) == own(mine)


def test_a_shelf_in_a_folder_is_read_as_it_lies(full: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(full, mine)
    place = Path(push(mine, str(tmp_path / "shelf")).url)
    for change in (more_views, more_teachers, add_samples):
        grow(mine, change)
        push(mine, str(tmp_path / "shelf"))
        assert check(place) == verify_cache(mine).coverage
        assert own(place) == own(mine)


PARTS = {
    "fields": (Selection(fields=("vit/logits",)), 24),
    "views": (Selection(views=(1,)), 18),
    "fraction": (Selection(fraction=0.4), 12),
    "both": (Selection(fields=("residual",), views=(0,), fraction=0.5), 8),
    "split": (Selection(split="test"), 36),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_says_so_and_is_completed_later(
    full: Path, shelf: str, tmp_path: Path, name: str
) -> None:
    push(full, shelf)
    selection, files = PARTS[name]
    copy, whole = tmp_path / "copy", open_cache(full)
    got = pull_cache(shelf, copy, selection)
    assert (got.files, got.left) == (files, FILES - files)
    check(copy)
    part = open_cache(copy)
    origin = part.origin
    assert origin is not None
    assert origin.asked.keys() == {key for key, value in vars(selection).items() if value}
    rows = np.argwhere(part.status != 0)
    here = [field for field, share in part.coverage_by_field().items() if share]
    for field, values in part.read(*rows.T, here).items():
        np.testing.assert_array_equal(values, whole.read(*rows.T, [field])[field])
    rest = pull_cache(shelf, copy)
    assert (rest.files, rest.standing) == (FILES - files, files)
    assert check(copy) == 1.0
    assert own(copy) == own(full)


def test_a_fraction_is_the_first_chunks_of_each_part(full: Path, tmp_path: Path) -> None:
    mine, shelf = tmp_path / "mine", str(tmp_path / "shelf")
    shutil.copytree(full, mine)
    grow(mine, add_samples)  # parts of 10 and 5 samples, in chunks of 4: 3 and 2 chunks
    push(mine, shelf)
    pull_cache(shelf, tmp_path / "some", Selection(fraction=0.4))
    status = open_cache(tmp_path / "some").status
    assert np.flatnonzero(status[:, 0]).tolist() == [*range(4), *range(10, 14)]


def test_rows_that_were_not_pulled_are_named_with_the_command(
    full: Path, shelf: str, tmp_path: Path
) -> None:
    url, copy = push(full, shelf).url, tmp_path / "copy"
    pull_cache(shelf, copy, Selection(views=(0,)))
    command = f"`dualkd-cache pull {url} {copy} --fields residual --views 1` fetches it"
    with pytest.raises(RowError, match="was pulled in part") as caught:
        open_cache(copy).read([3], [1], ["residual"])
    assert command in str(caught.value)


def test_parts_that_are_not_there_are_named(full: Path, shelf: str, tmp_path: Path) -> None:
    push(full, shelf)
    for selection, error, words in (
        (Selection(fields=("vit/logit",)), FieldError, "no field 'vit/logit'; there are status"),
        (Selection(views=(2,)), CacheError, r"no view 2; there are 0 … 1"),
        (Selection(fraction=1.5), CacheError, "fraction is 1.5, expected more than 0, at most 1"),
        (Selection(split="val"), CacheError, "no split 'val'; there are test, train"),
    ):
        with pytest.raises(error, match=words):
            pull_cache(shelf, tmp_path / "copy", selection)
        assert not (tmp_path / "copy").exists()


def test_two_who_extend_get_one_cache(full: Path, shelf: str, tmp_path: Path) -> None:
    push(full, shelf)
    ada, bob = tmp_path / "ada", tmp_path / "bob"
    for path, change in ((ada, more_views), (bob, more_teachers)):
        pull_cache(shelf, path)
        grow(path, change)
        push(path, shelf)
    for path in (ada, bob):
        pull_cache(shelf, path)
        check(path)
    assert own(ada).keys() == own(bob).keys()
    one, other = open_cache(ada), open_cache(bob)
    assert (one.num_views, list(one.added)) == (other.num_views, list(other.added)) == (3, ["slow"])
    for name in one.fields:
        np.testing.assert_array_equal(one.status_of(name), other.status_of(name))


def test_folders_are_merged_without_a_shelf(full: Path, tmp_path: Path) -> None:
    ada, bob = tmp_path / "ada", tmp_path / "bob"
    for path, change in ((ada, more_views), (bob, more_teachers)):
        shutil.copytree(full, path)
        grow(path, change)
    assert pull_cache(str(bob), ada).files == 24
    assert pull_cache(str(ada), bob).files == 18
    for path in (ada, bob):
        check(path)
    assert {name for name in own(ada) if "/c." in name} == {
        name for name in own(bob) if "/c." in name
    }


def test_two_pushes_at_once_lose_nothing(
    full: Path, shelf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(full, shelf)
    ada, bob = tmp_path / "ada", tmp_path / "bob"
    for path, change in ((ada, more_views), (bob, more_teachers)):
        shutil.copytree(full, path)
        grow(path, change)
    import cache.push_round

    write, once = cache.push_round.write_record, iter([True])

    def late(*arguments: Any) -> str:
        if next(once, False):  # everything is sent, and the record is about to be written
            push(bob, shelf)
        return write(*arguments)

    monkeypatch.setattr(cache.push_round, "write_record", late)
    push(ada, shelf)
    (found,) = shelved(shelf)
    assert len(found.records) == 1
    pull_cache(shelf, tmp_path / "copy")
    copy = open_cache(tmp_path / "copy")
    assert (copy.num_views, list(copy.added)) == (3, ["slow"])
    check(tmp_path / "copy")


def test_records_that_stand_side_by_side_are_one_cache(
    full: Path, shelf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after two pushes at once, before either has looked again."""
    ada, bob = tmp_path / "ada", tmp_path / "bob"
    for path, change in ((ada, more_views), (bob, more_teachers)):
        shutil.copytree(full, path)
        grow(path, change)
    push(ada, shelf)
    with monkeypatch.context() as patch:
        patch.setattr("cache.push.find_cache", lambda shelf, _: Shelved(shelf))
        patch.setattr("cache.push._ROUNDS", 1)
        with pytest.raises(CacheError, match="others push to it all the while"):
            push(bob, shelf)
    assert len(shelved(shelf)[0].records) == 2
    pull_cache(shelf, tmp_path / "copy")
    copy = open_cache(tmp_path / "copy")
    assert (copy.num_views, list(copy.added)) == (3, ["slow"])
    check(tmp_path / "copy")
    push(full, shelf)
    assert len(shelved(shelf)[0].records) == 1


def test_a_record_that_is_replaced_meanwhile_is_read_again(
    full: Path, shelf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(full, mine)
    push(mine, shelf)
    grow(mine, more_views)
    read, once = Remote.read, iter([True])

    def late(remote: Remote, key: str, limit: int | None = None) -> bytes:
        if key.endswith(".json") and "/" not in key and next(once, False):
            push(mine, shelf)
        return read(remote, key, limit)

    monkeypatch.setattr(Remote, "read", late)
    pull_cache(shelf, tmp_path / "copy")
    check(tmp_path / "copy")


def other_rows(full: Path, path: Path) -> Path:
    """A copy in which chunk 1 of the residual has other values in view 0, as of another GPU."""
    shutil.copytree(full, path)
    file = "residual/c.1.0.0.0.0.0"
    data = np.frombuffer((path / file).read_bytes()[:-4], "<f2").copy()
    data[0] += 1
    sign(path, file, data.tobytes())
    check(path)
    return path


def test_other_rows_are_refused_by_name(full: Path, shelf: str, tmp_path: Path) -> None:
    other = other_rows(full, tmp_path / "other")
    push(full, shelf)
    before = own(full)
    for act in (lambda: push(other, shelf), lambda: pull_cache(shelf, other)):
        with pytest.raises(ConflictError) as caught:
            act()
        assert "  chunk 1 (samples 4 … 7), view 0: residual\n" in str(caught.value)
    pull_cache(shelf, tmp_path / "copy")
    assert own(tmp_path / "copy") == before


def test_theirs_and_ours(full: Path, shelf: str, tmp_path: Path) -> None:
    other = other_rows(full, tmp_path / "other")
    mine = tmp_path / "mine"
    shutil.copytree(full, mine)
    push(mine, shelf)
    done = push(other, shelf, ours=True)
    assert done.files == 1  # the other fields of these rows are the same
    got = pull_cache(shelf, mine, theirs=True)
    assert got.files == 6
    assert check(mine) == 1.0
    assert own(mine) == own(other)
    pull_cache(shelf, tmp_path / "copy")
    assert own(tmp_path / "copy") == own(other)
    if "://" not in shelf:
        check(Path(done.url))


def test_what_cannot_be_one_cache_says_why(full: Path, shelf: str, tmp_path: Path) -> None:
    push(full, shelf)
    codec, added = tmp_path / "codec", tmp_path / "added"
    with make_cache(added) as writer:
        writer.add_fields(SLOW, {"slow": {**TEACHER, "weights_sha256": "dd"}})
    mine = tmp_path / "mine"
    shutil.copytree(full, mine)
    grow(mine, more_teachers)
    push(mine, shelf)
    with pytest.raises(
        ConflictError, match="teacher 'slow' was added to both, and is not the same"
    ):
        push(added, shelf)
    size = tmp_path / "size"
    full_cache(size, chunk_samples=5)
    with pytest.raises(ConflictError, match="their chunks have 4 and 5 samples"):
        push(size, shelf)
    fewer = tmp_path / "fewer"
    full_cache(fewer, count=9)
    with pytest.raises(ConflictError, match=r"parts of \[10\] and \[9\] samples"):
        push(fewer, shelf)
    del codec


def test_compressed_fields_travel(shelf: str, tmp_path: Path) -> None:
    path = compressed_cache(tmp_path / "c")
    push(path, shelf)
    pull_cache(shelf, tmp_path / "copy")
    assert own(tmp_path / "copy") == own(path)


def test_a_partial_cache_can_be_pushed_and_completed_there(
    full: Path, shelf: str, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    pull_cache(str(full), part, Selection(fields=("vit",), fraction=0.4))
    assert push(part, shelf).coverage == 0
    assert push(full, shelf).coverage == 1
    pull_cache(shelf, tmp_path / "copy")
    assert own(tmp_path / "copy") == own(full)


@pytest.mark.parametrize("count", [0, 1, 7, 20, 35])
def test_a_pull_that_ends_early_goes_on(
    full: Path, shelf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    push(full, shelf)
    fetch, fetched = _Pull._fetch, []

    def some(self: _Pull, key: Any, advance: Any) -> bool:
        if len(fetched) == count:
            raise KeyboardInterrupt
        fetched.append(key)
        return fetch(self, key, advance)

    copy = tmp_path / "copy"
    with monkeypatch.context() as patch:
        patch.setattr(_Pull, "_fetch", some)
        with pytest.raises(KeyboardInterrupt):
            pull_cache(shelf, copy, jobs=1)
    assert not copy.exists()
    assert pull_cache(shelf, copy).files == FILES - count
    assert check(copy) == 1.0
    assert own(copy) == own(full)
    assert [path.name for path in copy.parent.glob(".copy*")] == []


@pytest.mark.parametrize("count", [0, 1, 7, 35, 36, 40])
def test_a_push_that_ends_early_is_not_seen_and_goes_on(
    full: Path, shelf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    writes: list[str] = []

    def watched(call: Callable[..., None]) -> Callable[..., None]:
        def wrapped(remote: Remote, *arguments: Any) -> None:
            if len(writes) == count:
                raise KeyboardInterrupt
            writes.append(str(arguments))
            call(remote, *arguments)

        return wrapped

    with monkeypatch.context() as patch:
        for name in ("upload", "write"):
            patch.setattr(Remote, name, watched(getattr(Remote, name)))
        with pytest.raises(KeyboardInterrupt):
            push(full, shelf, jobs=1)
    assert shelved(shelf) == []
    done = push(full, shelf)
    assert (done.files, done.standing) == (max(FILES - count, 0), min(count, FILES))
    pull_cache(shelf, tmp_path / "copy")
    assert own(tmp_path / "copy") == own(full)


def run_push(path: Path, shelf: str) -> None:
    push(path, shelf, jobs=2)


def run_pull(shelf: str, path: Path) -> None:
    pull_cache(shelf, path, jobs=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_killed_pushes_and_pulls_leave_nothing_half(full: Path, tmp_path: Path) -> None:
    shelf, draw = str(tmp_path / "shelf"), random.Random(0)
    copy, context = tmp_path / "copy", multiprocessing.get_context("fork")
    for act, arguments, there in (
        (run_push, (full, shelf), lambda: bool(shelved(shelf))),
        (run_pull, (shelf, copy), copy.exists),
    ):
        for _ in range(8):
            process = context.Process(target=act, args=arguments)
            process.start()
            time.sleep(draw.uniform(0, 0.12))
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            if there():
                break
        act(*arguments)
        assert there()
    assert own(copy) == own(full)
    assert check(copy) == 1.0


def test_a_damaged_file_is_not_pushed(full: Path, shelf: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(full, mine)
    file = mine / "residual/c.1.0.0.0.0.0"
    file.write_bytes(b"\1" + file.read_bytes()[1:])
    with pytest.raises(
        DamagedError, match=r"residual/c\.1\.0\S* is damaged: .*dualkd-cache repair"
    ):
        push(mine, shelf)
    assert shelved(shelf) == []
    (mine / "vit/zarr.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"vit/zarr\.json is damaged: .*no repair can make it"):
        push(mine, shelf)


def test_wrong_bytes_there_are_named_and_mended_by_another_push(
    full: Path, shelf: str, tmp_path: Path
) -> None:
    url, copy = push(full, shelf).url, tmp_path / "copy"
    files, root = fsspec.url_to_fs(url)
    name = f"{root}/residual/c.1.0.0.0.0.0"
    files.pipe_file(name, b"\1" + files.cat_file(name)[1:])
    with pytest.raises(TransferError, match=r"residual/c\.1\.0\S* is damaged: .*push --check"):
        pull_cache(shelf, copy)
    assert not copy.exists()
    assert push(full, shelf).files == 0  # its size is right
    assert push(full, shelf, check=True).files == 1
    files.rm(name)
    with pytest.raises(TransferError, match=r"residual/c\.1\.0\S* is missing"):
        pull_cache(shelf, copy)
    assert push(full, shelf).files == 1  # it is listed no more
    pull_cache(shelf, copy)
    assert own(copy) == own(full)


def test_a_damaged_record_or_table_is_named(full: Path, shelf: str, tmp_path: Path) -> None:
    url = push(full, shelf).url
    files, root = fsspec.url_to_fs(url)
    table = f"{root}/samples.parquet"
    files.pipe_file(table, files.cat_file(table)[:-1])
    with pytest.raises(DamagedError, match=r"samples\.parquet is not what was pushed"):
        pull_cache(shelf, tmp_path / "copy")
    (record,) = [name for name in files.ls(root.rpartition("/")[0], detail=False) if "json" in name]
    files.pipe_file(record, files.cat_file(record)[:-3])
    with pytest.raises(DamagedError, match=r"\.json is damaged"):
        pull_cache(shelf, tmp_path / "copy")


@pytest.mark.parametrize("key", ["../../outside", "/etc/passwd", "vit/../../x", "commits/x.json"])
def test_a_record_cannot_lead_elsewhere(full: Path, tmp_path: Path, key: str) -> None:
    shelf = tmp_path / "shelf"
    push(full, str(shelf))
    (record,) = (shelf / "tiny").glob("*.json")
    document = read_sealed(record)
    del document["crc32c"]
    document["commits"][key] = [3, "00"]
    record.write_bytes(seal(document))
    with pytest.raises(CacheError, match="is no record of a cache"):
        pull_cache(str(shelf), tmp_path / "copy")


def test_links_in_a_folder_are_not_followed(full: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    shutil.copytree(full, theirs)
    file = theirs / "residual/c.1.0.0.0.0.0"
    file.unlink()
    file.symlink_to("/etc/passwd")
    with pytest.raises(
        CacheError, match="is a link to /etc/passwd, and a cache is read from its own files"
    ):
        pull_cache(str(theirs), tmp_path / "copy")


def test_a_place_that_is_taken_is_refused(full: Path, shelf: str, tmp_path: Path) -> None:
    push(full, shelf)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("mine")
    with pytest.raises(CacheError, match="is a folder with other files and no cache"):
        pull_cache(shelf, tmp_path / "thesis")
    with pytest.raises(CacheError, match="holds no cache"):
        pull_cache(str(tmp_path / "thesis"), tmp_path / "copy")


def test_secrets_are_not_told() -> None:
    secret = "https://ada:geheim@host.example:8443/caches?token=geheim"
    assert public_url(secret) == "https://host.example:8443/caches"
    assert Remote(secret.partition("?")[0]).url == "https://host.example:8443/caches"
    with pytest.raises(CacheError, match="was given with a query") as caught:
        Remote(secret)
    assert "geheim" not in str(caught.value)
    assert public_url("/nfs/a b?c@d") == "/nfs/a b?c@d"


def test_an_unknown_protocol_is_explained(tmp_path: Path, full: Path) -> None:
    with pytest.raises(CacheError, match="nosuch://x is nothing that fsspec opens"):
        push(full, "nosuch://x")
    with pytest.raises(CacheError, match="gs://x needs a package that is not installed"):
        pull_cache("gs://x", tmp_path / "copy")


def test_a_cache_that_is_being_written_is_not_pulled_into(
    full: Path, shelf: str, tmp_path: Path
) -> None:
    push(full, shelf)
    mine = tmp_path / "mine"
    shutil.copytree(full, mine)
    with (
        open_writer(mine, identity=IDENTITY),
        pytest.raises(CacheError, match="is being written by process"),
    ):
        pull_cache(shelf, mine)


def test_what_is_written_meanwhile_is_pushed_as_far_as_it_is_committed(
    shelf: str, tmp_path: Path
) -> None:
    with make_cache(tmp_path / "c") as writer:
        writer.write_chunk(0, chunk_arrays(writer, 0, (0, 1)))
        assert push(tmp_path / "c", shelf).files == 12
        fill_cache(writer)
    assert push(tmp_path / "c", shelf).files == 24
    pull_cache(shelf, tmp_path / "copy")
    assert check(tmp_path / "copy") == 1.0


def test_bytes_that_were_here_already_are_not_counted(
    full: Path, shelf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(full, shelf)
    with monkeypatch.context() as patch:
        patch.setattr(_Pull, "_commit", lambda *_: _interrupt())
        with pytest.raises(KeyboardInterrupt):
            pull_cache(shelf, tmp_path / "copy", jobs=1)
    got = pull_cache(shelf, tmp_path / "copy")
    whole = pull_cache(shelf, tmp_path / "other")
    assert 0 < got.files < FILES
    assert 0 < got.bytes < whole.bytes


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_full_disk_is_told_and_what_has_arrived_is_kept(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, copy = str(tmp_path / "shelf"), tmp_path / "copy"
    copyfile, done = shutil.copyfile, iter(range(20))

    def full_after_some(*arguments: Any) -> Any:
        return copyfile(*arguments) if next(done, None) is not None else full_disk()

    for act in (lambda: push(full, shelf, jobs=1), lambda: pull_cache(shelf, copy, jobs=1)):
        done = iter(range(20))
        with monkeypatch.context() as patch:
            patch.setattr("fsspec.implementations.local.shutil.copyfile", full_after_some)
            with pytest.raises(CacheError, match="No space left on device"):
                act()
        assert shelved(shelf) == [] or not copy.exists()
        act()
    assert own(copy) == own(full)
