"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import chain_making
from pipeline.config import Run
from stages.extract import extract
from stages.prepare import prepare


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: the tests' networks are tiny, and results then do not depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def no_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Chunk files that are kept of caches at URLs are no part of the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a miniature run up to and including `extract`; copy it before you change it."""
    folder = tmp_path_factory.mktemp("mini")
    before = Path.cwd()
    os.chdir(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = chain_making.write_config(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "cpu_count", lambda: 1)  # a few videos: no processes to render them
            prepare(run)
        chain_making.write_teachers(run)
        extract(run, chain_making.options(run))
    finally:
        torch.set_num_threads(threads)
        os.chdir(before)
    return folder


@pytest.fixture
def mini(extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The miniature run in a copy of its folder, which is the working folder."""
    folder = tmp_path / "mini"
    shutil.copytree(extracted, folder)
    monkeypatch.chdir(folder)
    return chain_making.write_config(folder)


@pytest.fixture
def copy(full: Path, tmp_path: Path) -> Path:
    """A copy of the cache that the test's file has as `full`, to be spoilt."""
    return Path(shutil.copytree(full, tmp_path / "copy.cache"))
