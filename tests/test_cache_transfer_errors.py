"""What users are told where an address or a store fails: the thing, the way out, no secret."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest
import s3fs

import cache.remote
from cache import CacheError, TransferError, open_cache, public_url, pull_cache, shelved
from cache.address import checked_address, without_secrets
from cache.remote import Remote
from cache_making import IDENTITY, full_cache
from s3_serving import BUCKET, Server, s3, s3_server
from sharing_making import full, own, push

__all__ = ["full", "s3", "s3_server"]  # fixtures
SECRETS = ("AKIAMINE", "hunter2")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less: what is tried again is the same."""
    monkeypatch.setattr(cache.remote, "_WAITS_SEC", (0.0, 0.0, 0.0))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)


def told_by(act: Any) -> str:
    """What an error says; it is one line that ends with a way out."""
    with pytest.raises(CacheError) as caught:
        act()
    return str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAMINE:hunter2@team/caches",
        "S3://AKIAMINE:hunter2@team/caches",
        "s3://AKIAMINE:hun/ter2hunter2@team/caches",
        "s3://hunter2@team/caches",
        "gs://AKIAMINE:hunter2@team",
    ],
)
def test_a_secret_in_a_bucket_address_is_refused_and_not_shown(
    full: Path, tmp_path: Path, url: str
) -> None:
    for act in (
        lambda: push(full, url),
        lambda: pull_cache(url, tmp_path / "copy"),
        lambda: shelved(url),
        lambda: open_cache(url, blocks=True),
        lambda: open_cache(url),
    ):
        told = told_by(act)
        assert not any(secret in told for secret in (*SECRETS, "ter2"))
        assert "Credentials come from where the tools of the store look for them" in told


def test_what_a_client_says_of_an_address_is_told_without_its_secrets() -> None:
    url = "sftp://ada:hun%23ter2@host/caches?token=geheim"
    said = "cannot open sftp://ada:hun%23ter2@host/caches?token=geheim (hun#ter2, geheim)"
    told = without_secrets(said, url)
    assert told.startswith("cannot open sftp://…@host/caches?…")
    assert not any(secret in told for secret in ("hun%23ter2", "hun#ter2", "geheim"))
    assert without_secrets("an ada in Canada", "s3://team/a") == "an ada in Canada"
    assert public_url("sftp://ada:pa/ss@host/caches") == "sftp://…"
    assert public_url("s3://arn:aws:s3:eu:1:accesspoint/mine/a") == (
        "s3://arn:aws:s3:eu:1:accesspoint/mine/a"
    )


def test_a_query_is_refused_and_not_shown(full: Path) -> None:
    told = told_by(lambda: shelved("https://ada:hunter2@host:8443/caches/?sig=geheim"))
    assert told.startswith("https://host:8443/caches/ was given with a query (?…, not shown here)")
    assert "geheim" not in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "the address is empty: give a folder, or a URL as s3://bucket/caches"),
        ("s3:/team/c", "s3:/team/c is neither a URL, which has two slashes as s3://team/c, nor"),
        ("nas:/caches", "of a folder of this name write ./nas:/caches"),
    ],
)
def test_mistakes_in_an_address_are_refused(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for act in (
        lambda: push(full, address),
        lambda: pull_cache(address, tmp_path / "copy"),
        lambda: shelved(address),
        lambda: open_cache(address, blocks=True),
    ):
        assert words in told_by(act)
    assert list(tmp_path.iterdir()) == []


def test_other_addresses_are_as_they_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_address("S3://Team/Caches") == "s3://Team/Caches"
    assert checked_address("./s3:/team") == str(tmp_path / "s3:" / "team")
    assert checked_address("C:/caches").endswith("C:/caches")
    assert checked_address("file:///nfs/a:/b") == "file:///nfs/a:/b"
    assert Remote("MEMORY://a").url == "memory://a"


def test_a_missing_bucket_is_named(s3: Server, full: Path, tmp_path: Path) -> None:
    for act in (
        lambda: shelved("s3://teem/caches"),
        lambda: push(full, "s3://teem/caches"),
        lambda: pull_cache("s3://teem/caches", tmp_path / "copy"),
        lambda: open_cache("s3://teem/caches", blocks=True),
    ):
        told = told_by(act)
        assert told.startswith("s3://teem/caches")
        assert told.endswith("bucket does not exist. Check the name of the bucket, or have it made")


def test_no_credentials(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    told = told_by(lambda: shelved(f"s3://{BUCKET}/caches"))
    monkeypatch.undo()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert "Credentials come from where the s3 tools look for them (environment, ~/.aws" in told
    assert "arrived" not in told


def test_nobody_answers(s3: Server, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        told = told_by(lambda: shelved(f"s3://{BUCKET}/caches"))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert "Nobody answers there: check the network and AWS_ENDPOINT_URL, which is " in told
    assert "http://127.0.0.1:1. Run the same command again" in told
    assert "arrived" not in told


def test_a_name_that_no_bucket_can_have(s3: Server) -> None:
    told = told_by(lambda: shelved("s3://te!am/caches"))
    assert 'Invalid bucket name "te!am"' in told
    assert "Check the address" in told


def test_a_shelf_that_cannot_be_written(full: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("mine")
    told = told_by(lambda: push(full, str(tmp_path / "file")))
    assert f"{tmp_path}/file/tiny/" in told
    assert told.endswith("Check the address: nothing can be written there")
    monkeypatch.setattr(Remote, "_write", lambda *_: os.open("/proc/version", os.O_WRONLY))
    told = told_by(lambda: push(full, str(tmp_path / "shelf")))
    assert "Credentials" not in told


def test_a_place_that_cannot_be_pulled_into(full: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("mine")
    identity: Any = {**IDENTITY, "views": {"rule": "random", "seed": 8}}
    full_cache(tmp_path / "another", identity=identity, count=1, views=1)
    for name in ("file", "thesis", "another"):
        told = told_by(lambda: pull_cache(str(full), tmp_path / name))  # noqa: B023
        assert "ull into another folder" in told
        assert "--" not in told
    mkdir = Path.mkdir

    def read_only(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name == ".copy.pulling":
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", read_only)
    told = told_by(lambda: pull_cache(str(full), tmp_path / "copy"))
    assert told.startswith(f"{tmp_path} cannot be written: [Errno 30] Read-only file system")
    assert told.endswith("pull into another folder")


def test_a_cache_is_not_pushed_into_itself(tmp_path: Path) -> None:
    path = full_cache(tmp_path / "c", count=1, views=1)
    before = own(path)
    for place in (path, path / "shelf", f"file://{path}"):
        told = told_by(lambda: push(path, str(place)))  # noqa: B023
        assert "itself or inside it" in told
    there = push(path, str(tmp_path / "shelf")).url
    assert "itself or inside it" in told_by(lambda: push(Path(there), str(tmp_path / "shelf")))
    assert own(path) == before


def test_the_commands_show_no_secret(s3: Server, full: Path) -> None:
    program = Path(sys.executable).with_name("dualkd-cache")
    url = "s3://AKIAMINE:hunter2@team/caches"
    for arguments in (("ls", url), ("info", url), ("push", str(full), url)):
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: there is no place for a user or a password in s3://")
        assert not any(secret in done.stderr + done.stdout for secret in SECRETS)
    with pytest.raises(TransferError):  # the server itself answers
        Remote(f"s3://{BUCKET}x/caches").list()
