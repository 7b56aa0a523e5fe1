"""The table of subsets: written beside the samples table, read in the order of any part of it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.samples import Sample, Samples, SamplesError, build_samples
from pipeline.subsets import read_subsets, write_subsets


@pytest.fixture
def samples() -> Samples:
    rows = [Sample(name, f"{name}.mp4", "test", {"action": 0}) for name in "abcd"]
    return build_samples("mini", {"action": ["x"]}, rows)


def test_members_come_back_in_the_order_of_the_samples(samples: Samples, tmp_path: Path) -> None:
    path = tmp_path / "outputs" / "subsets.parquet"
    write_subsets(samples, {"rare": {"a", "c", "not in the table"}, "none": set()}, path)
    found = read_subsets(path, samples.take([2, 1, 0]))
    assert {name: members.tolist() for name, members in found.items()} == {
        "rare": [True, False, True],
        "none": [False, False, False],
    }
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_of_most_datasets_there_are_none(samples: Samples, tmp_path: Path) -> None:
    write_subsets(samples, {}, tmp_path / "subsets.parquet")
    assert read_subsets(tmp_path / "subsets.parquet", samples) == {}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "no table of subsets at"),
        ({"name": ["a"]}, "lacks the column sample_id"),
        ({"sample_id": ["a", "b"], "rare": [1, 0]}, "column rare of .* is int64 with 0 empty"),
        ({"sample_id": ["a"], "rare": pa.array([None], pa.bool_())}, "bool with 1 empty cells"),
        ({"sample_id": ["a", "b"], "rare": [True, False]}, "lacks 2 of 4 samples, as c"),
    ],
)
def test_what_is_no_table_of_these_samples_is_refused(
    samples: Samples, table: dict[str, object] | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "subsets.parquet"
    if table is not None:
        pq.write_table(pa.table(table), path)
    with pytest.raises(SamplesError, match=message) as caught:
        read_subsets(path, samples)
    assert "`dualkd prepare` makes it" in str(caught.value)


def test_a_damaged_table_is_refused(samples: Samples, tmp_path: Path) -> None:
    (tmp_path / "subsets.parquet").write_bytes(b"{")
    with pytest.raises(SamplesError, match="not a readable parquet file"):
        read_subsets(tmp_path / "subsets.parquet", samples)
