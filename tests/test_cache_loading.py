"""Reading inside torch's `DataLoader`: the same bytes, no deadlock, no growth of memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from cache import BitRound, BloscZstd, Field, TeacherCache, open_cache
from cache.codecs import lossy_codecs
from cache_making import IDENTITY, full_cache

BATCH = 32
COUNT = 24
FIELDS = (
    Field("vit/pooled", ("channel",), (5,), "float16"),
    Field("residual", ("channel", "time"), (4, 3), "float16"),
)
PACKED = (
    Field("vit/pooled", ("channel",), (5,), "float16", BloscZstd()),
    Field("residual", ("channel", "time"), (4, 3), "float16", BitRound(4)),
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
    # This machine may have fewer cores than the loader has workers.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]


class Batches(Dataset[dict[str, Any]]):
    """Batch number `index` of rows in a seeded order."""

    def __init__(self, cache: TeacherCache, count: int) -> None:
        self.cache, self.count = cache, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = np.random.default_rng(index).integers(COUNT, size=BATCH)
        return {"index": index, **self.cache.read(rows, rows % 2)}


def as_read(batch: dict[str, Any]) -> dict[str, Any]:
    """Send arrays as they are: a tensor travels through a file of its own, which takes longest."""
    return batch


def loader(
    cache: TeacherCache, count: int, workers: int, method: str | None, collate: Any = None
) -> DataLoader[Any]:
    """A loader that gives up after a minute without a batch."""
    return DataLoader(
        Batches(cache, count),
        batch_size=None,
        collate_fn=collate,
        num_workers=workers,
        multiprocessing_context=method,
        timeout=60 if workers else 0,
    )


@pytest.fixture(scope="module", params=["mapped", "blocks"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    """A cache that was read from already, so that forked workers inherit maps or blocks."""
    fields = FIELDS if request.param == "mapped" else PACKED
    path = full_cache(
        tmp_path_factory.mktemp("loaded") / request.param,
        count=COUNT,
        fields=fields,
        identity={**IDENTITY, "codecs": lossy_codecs(fields)},
    )
    opened = open_cache(path, blocks=True)
    opened.read([0, 9], [0, 1])
    return opened


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (4, "fork")])
def test_a_data_loader_gives_the_same_bytes(
    cache: TeacherCache, workers: int, method: str | None
) -> None:
    assert_the_rows_come(cache, loader(cache, 40, workers, method))


def assert_the_rows_come(cache: TeacherCache, batches: Iterable[dict[str, Any]]) -> None:
    """Check 40 batches against what this process reads."""
    expected, seen = Batches(cache, 40), 0
    for batch in islice(batches, 40):
        rows = expected[int(batch["index"])]
        for name in cache.fields:
            assert np.asarray(batch[name]).tobytes() == rows[name].tobytes()
        seen += 1
    assert seen == 40


def resident(batches: Iterator[Any], at: tuple[int, ...]) -> list[int]:
    """Resident bytes of this process and the loader's workers after so many more batches."""
    found, process = [], psutil.Process(os.getpid())
    for number in range(1, max(at) + 1):
        next(batches)
        if number in at:
            processes = (process, *process.children(recursive=True))
            found.append(sum(one.memory_info().rss for one in processes))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (2, "spawn")])
def test_the_same_bytes_and_no_more_memory_over_ten_thousand_batches(
    cache: TeacherCache, workers: int, method: str | None
) -> None:
    # Still running when measured last.
    batches = iter(loader(cache, 10_050, workers, method, collate=as_read))
    assert_the_rows_come(cache, batches)
    early, late = resident(batches, (1_000, 10_000))
    assert late - early < 8 * 2**20  # 9,000 batches of 32 rows of 91 bytes are 26 MB
