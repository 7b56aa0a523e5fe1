"""Extraction by workers of dask: the bytes of one process, whatever dies on the way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache import open_cache, verify_cache
from cache_making import contents
from chain_making import options, write_config
from pipeline.config import Run
from stages.chunk_arrays import ExtractError
from stages.extract import extract

pytestmark = pytest.mark.filterwarnings("ignore")  # of dask's own


@pytest.mark.slow
def test_workers_make_the_bytes_of_one_process(mini: Run) -> None:
    one = contents(mini.cache_path)
    shutil.rmtree(mini.cache_path)
    extract(mini, replace(options(mini), workers=2))
    assert contents(mini.cache_path) == one
    assert verify_cache(mini.cache_path).ok
    assert not (mini.cache_path / ".staging").exists()
