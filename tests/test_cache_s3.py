"""Caches on a real S3 protocol server whose answers fail: all arrives, or nothing is to be seen."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs

import cache.remote
from cache import TransferError, open_cache, pull_cache, shelved, verify_cache
from cache_making import contents, full_cache
from s3_serving import BUCKET, Fault, Server, credentials, s3, s3_server
from sharing_making import full, grow, more_views, own, push

__all__ = ["full", "s3", "s3_server"]  # fixtures
SHELF = f"s3://{BUCKET}/caches"
CHUNK = "residual/c.1.0.0"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less: what is tried again is the same."""
    monkeypatch.setattr(cache.remote, "_WAITS_SEC", (0.0, 0.0, 0.0))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 1)


@contextmanager
def fault(server: Server, kind: str, method: str, key: str, times: int | None) -> Iterator[None]:
    """Something fails for a while."""
    server.faults[:] = [Fault(kind, method, key, times)]
    yield
    assert server.faults[0].done > 0
    server.faults.clear()


def test_there_and_back(s3: Server, full: Path, tmp_path: Path) -> None:
    mine = full_cache(tmp_path / "mine")
    assert push(mine, SHELF).files == 36
    grow(mine, more_views)
    s3.requests.clear()
    assert push(mine, SHELF).files == 18
    chunks = [path for method, path in s3.requests if method == "PUT" and "/c." in path]
    assert len(chunks) == 18
    assert all(re.search(r"/c\.\d\.2", path) for path in chunks)  # of the new view only
    pull_cache(SHELF, tmp_path / "copy")
    assert own(tmp_path / "copy") == own(mine)
    here = open_cache(mine)
    there = open_cache(f"{SHELF}/tiny/{here.fingerprint[:12]}", blocks=True)
    rows = np.arange(10), np.full(10, 2)
    for name, values in here.read(*rows).items():
        np.testing.assert_array_equal(there.read(*rows, [name])[name], values)


READ_FAILS = ("status 500", "status 503", "drop", "cut", "wrong bytes")
WRITE_FAILS = ("status 500", "status 503", "drop", "wrong store")


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *((kind, CHUNK) for kind in (*READ_FAILS, "hang", "slow")),
        ("status 503", ".json"),
        ("wrong bytes", "samples.parquet"),
        ("cut", ".json"),
    ],
)
def test_a_pull_outlives_what_passes(
    s3: Server, full: Path, tmp_path: Path, kind: str, key: str
) -> None:
    push(full, SHELF)
    with fault(s3, kind, "GET", key, times=2):
        pull_cache(SHELF, tmp_path / "copy")
    assert own(tmp_path / "copy") == own(full)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *((kind, CHUNK) for kind in (*WRITE_FAILS, "hang", "slow")),
        ("drop", ".json"),
        ("wrong store", ".json"),
    ],
)
def test_a_push_outlives_what_passes(
    s3: Server, full: Path, tmp_path: Path, kind: str, key: str
) -> None:
    with fault(s3, kind, "PUT", key, times=2):
        push(full, SHELF)
    pull_cache(SHELF, tmp_path / "copy")
    assert own(tmp_path / "copy") == own(full)


@pytest.mark.parametrize("kind", [*READ_FAILS, "hang", "missing", "denied"])
def test_a_pull_that_cannot_go_on_names_the_object_and_goes_on_later(
    s3: Server, full: Path, tmp_path: Path, kind: str
) -> None:
    url, copy = push(full, SHELF).url, tmp_path / "copy"
    with fault(s3, kind, "GET", CHUNK, times=None), pytest.raises(TransferError) as caught:
        pull_cache(SHELF, copy)
    assert f"{url}/{CHUNK}" in str(caught.value)
    wants = {
        "denied": "Credentials come from",
        "missing": "`dualkd-cache push --check`",
    }
    assert wants.get(kind, "run the same command again") in str(caught.value)
    assert not copy.exists()
    s3.requests.clear()
    pull_cache(SHELF, copy)
    assert own(copy) == own(full)
    assert verify_cache(copy).findings == []


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *((kind, CHUNK) for kind in (*WRITE_FAILS, "denied")),
        ("status 503", "zarr.json"),
        ("denied", "/tiny/"),
    ],
)
def test_a_push_that_cannot_go_on_is_not_seen_and_goes_on_later(
    s3: Server, full: Path, tmp_path: Path, kind: str, key: str
) -> None:
    with fault(s3, kind, "PUT", key, times=None), pytest.raises(TransferError) as caught:
        push(full, SHELF, jobs=2)
    assert re.search(
        rf"s3://{BUCKET}/caches/tiny/\S+ (could not|may not) be written", str(caught.value)
    )
    assert shelved(SHELF) == []
    push(full, SHELF)
    pull_cache(SHELF, tmp_path / "copy")
    assert own(tmp_path / "copy") == own(full)


def test_nothing_of_a_push_is_seen_before_its_last_write(
    s3: Server, full: Path, tmp_path: Path
) -> None:
    small = full_cache(tmp_path / "small", count=3, views=1)
    s3.requests.clear()
    push(small, SHELF, jobs=1)
    writes = sum(method == "PUT" for method, _ in s3.requests)
    for count in range(writes):
        files = fsspec.filesystem("s3")
        files.invalidate_cache()
        if files.exists(f"{BUCKET}/caches"):
            files.rm(f"{BUCKET}/caches", recursive=True)
        s3.faults[:] = [Fault("none", "PUT", times=count), Fault("denied", "PUT")]
        with pytest.raises(TransferError):
            push(small, SHELF, jobs=1)
        s3.faults.clear()
        assert shelved(SHELF) == []
    push(small, SHELF)
    assert len(shelved(SHELF)) == 1


def test_credentials_are_nowhere(
    s3: Server, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = [credentials(s3)[name] for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID")]
    push(full, SHELF)
    pull_cache(SHELF, tmp_path / "copy")
    files = fsspec.filesystem("s3")
    written = [files.cat_file(path) for path in files.find(BUCKET)]
    written += contents(tmp_path / "copy", commits=True).values()
    with fault(s3, "denied", "GET", CHUNK, None), pytest.raises(TransferError) as caught:
        pull_cache(SHELF, tmp_path / "other")
    written.append(str(caught.value).encode())
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secrets[0])
    for secret in secrets:
        assert not any(secret.encode() in content for content in written)


def test_the_commands(s3: Server, full: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        program = Path(sys.executable).with_name("dualkd-cache")
        return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)

    done = run("push", str(full), SHELF, "--author", "ada")
    assert done.returncode == 0, done.stderr
    assert "sending: 0.0/0.0 MB" in done.stderr
    assert "36 chunk files sent, 0 were there" in done.stderr
    listed = run("ls", SHELF)
    assert listed.returncode == 0
    assert "by ada" in listed.stdout
    got = run("pull", SHELF, str(tmp_path / "copy"), "--fields", "vit/logits", "--views", "0")
    assert got.returncode == 0, got.stderr
    told = " ".join(got.stderr.split())
    assert "is partial: 24 chunk files of there were not asked for" in told
    shown = run("info", str(tmp_path / "copy"))
    assert f"partial; `dualkd-cache pull {SHELF}/tiny/" in " ".join(shown.stdout.split())
    wrong = run("pull", SHELF, str(tmp_path / "copy"), "--views", "one")
    assert wrong.returncode == 2
    assert "--views takes numbers as 0,1; got 'one'" in wrong.stderr
    none = run("ls", f"s3://{BUCKET}/nothing")
    assert (none.returncode, none.stderr.count("\n")) == (1, 1)
    assert "holds no caches" in none.stderr
