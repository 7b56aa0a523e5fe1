"""What tests of caches that travel share: a full cache, a shelf, pushing as commands do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cache import Commits, Layout, Pushed, open_writer, push_cache, verify_cache
from cache_making import IDENTITY, SLOW, TEACHER, contents, fill_cache, full_cache

FILES = 36  # chunk files of the full cache: 6 fields, 3 chunks, 2 views


def about(layout: Layout, commits: Commits) -> dict[str, Any]:
    """What a catalogue shows."""
    return {"coverage": commits.coverage(layout, layout.fields), "views": layout.num_views}


def push(path: Path, url: str, **options: Any) -> Pushed:
    """Push as the command does."""
    return push_cache(path, url, **({"author": "ada", "about": about} | options))


def own(path: Path) -> dict[str, bytes]:
    """All files of a cache that do not tell by whom and when."""
    return {name: data for name, data in contents(path).items() if name != "origin.json"}


def check(path: Path) -> float:
    """A cache must be sound; returns how much of it is there."""
    proof = verify_cache(path)
    assert proof.findings == []
    return proof.coverage


def grow(path: Path, change: Callable[[Any], None]) -> None:
    """Let a cache grow, and fill it."""
    with open_writer(path, identity=IDENTITY) as writer:
        change(writer)
        fill_cache(writer)


def more_views(writer: Any) -> None:
    writer.add_views(1)


def more_teachers(writer: Any) -> None:
    writer.add_fields(SLOW, {"slow": TEACHER})


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete cache of 10 samples in 2 views in 3 chunks; to be read only."""
    return full_cache(tmp_path_factory.mktemp("full") / "tiny.cache")


@pytest.fixture(params=["folder", "memory"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty shelf: on this disk, and in a store that has no folders and no renaming."""
    if request.param == "folder":
        yield str(tmp_path / "shelf")
        return
    yield f"memory://{tmp_path.name}/shelf"
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)
