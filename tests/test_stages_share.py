"""What `push`, `pull` and `ls` tell people: what is there, why, and commands that can be pasted."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from cache import (
    CacheError,
    RowError,
    Selection,
    describe,
    open_cache,
    open_writer,
    pull_cache,
    shelved,
)
from cache.layout import repair_hint
from cache.sealed import seal
from cache_making import IDENTITY
from sharing_making import full, grow, more_views, push, shelf
from stages import share
from stages.info import show as show_info
from stages.share import catalogue

__all__ = ["full", "shelf"]  # fixtures


def test_what_ls_tells_is_plain_json(full: Path, shelf: str) -> None:
    push(full, shelf)
    (fact,) = json.loads(json.dumps(catalogue(shelf)))
    assert fact["dataset"] == "tiny"
    assert fact["author"] == "ada"
    with pytest.raises(CacheError, match="holds no caches: `dualkd-cache push"):
        catalogue(f"{shelf}/nothing")


def test_ls_tells_what_records_say_together(full: Path, shelf: str, tmp_path: Path) -> None:
    """As where two folders of push results were put into one by hand."""
    mine = tmp_path / "mine"
    shutil.copytree(full, mine)
    push(mine, shelf)
    files, root = fsspec.url_to_fs(f"{shelf}/tiny")
    ((name, content),) = (
        (name, files.cat_file(name)) for name in files.ls(root, detail=False) if "json" in name
    )
    grow(mine, more_views)
    with open_writer(mine, identity=IDENTITY) as writer:
        writer.add_views(1)
    push(mine, shelf)
    (record,) = shelved(shelf)[0].records
    files.pipe_file(f"{root}/{record.name}", seal(record.to_json() | {"replaces": []}))
    files.pipe_file(name, content)
    assert len(shelved(shelf)[0].records) == 2
    (fact,) = catalogue(shelf)
    assert "damaged" not in fact
    assert (fact["samples"], fact["views"], fact["coverage"]) == (10, 4, 0.75)
    assert fact["bytes"] == sum(open_cache(mine).bytes_by_field().values())
    files.rm(f"{root}/{record.fingerprint}/samples.parquet")
    (fact,) = catalogue(shelf)
    assert "samples.parquet is missing, which a record names" in fact["damaged"]


def test_commands_in_messages_can_be_pasted(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shelf, copy = tmp_path / "our shelf", tmp_path / "my copy"
    url = f"{shelf}/tiny/{open_cache(full).fingerprint}"
    share.push(full, str(shelf), author="ada", jobs=8, ours=False, check=False)
    told = capsys.readouterr().err.splitlines()[-1]
    assert shlex.split(told) == ["dualkd-cache", "pull", url, "PATH"]
    pull_cache(str(shelf), copy, Selection(views=(0,)))
    capsys.readouterr()
    show_info(describe(copy))
    shown = [line for line in capsys.readouterr().out.splitlines() if "partial" in line]
    assert shlex.split(shown[0].split("`")[1]) == ["dualkd-cache", "pull", url, str(copy)]
    with pytest.raises(RowError) as caught:
        open_cache(copy).read([3], [1], ["residual"])
    words = shlex.split(str(caught.value).split("`")[1])
    assert words == [
        *("dualkd-cache", "pull", url, str(copy), "--fields", "residual", "--views", "1")
    ]
    assert repair_hint(copy).startswith(f"`dualkd-cache repair '{copy}'`")


def test_a_fraction_that_came_out_larger_says_why(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share.pull(str(full), tmp_path / "c", Selection(fraction=0.1), jobs=2, theirs=False)
    said = capsys.readouterr().err
    assert "--fraction 0.1 took 4 of 10 samples (40%): a cache travels in whole chunks" in said


def test_an_option_that_names_nothing_is_refused(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("dualkd-cache")
    arguments = ("pull", str(tmp_path), str(tmp_path / "copy"), "--fields", ",")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--fields is ',', which names nothing; leave it out for all" in " ".join(
        done.stderr.split()
    )
