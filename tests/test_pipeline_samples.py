"""The samples table: what it keeps, and every row that it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.samples import (
    Sample,
    Samples,
    SamplesError,
    build_samples,
    read_samples,
    samples_from_table,
    write_samples,
)

CLASSES = {"verb": ["cut", "open", "wash"], "noun": ["cup", "door"]}
ROWS = [
    Sample("P01_01", "P01/a #1.mp4", "train", {"verb": 0, "noun": 1}, 1.5, 2.25),
    Sample("-b", "P01/a #1.mp4", "train", {"verb": 2, "noun": 0}),
    Sample("ü", "P02/ü.avi", "test", {}, stop_sec=4.0),
    Sample("d", "..d/..mp4", "val", {"verb": 1}),
]


def tiny(**changes: object) -> Sample:
    fields = {"sample_id": "x", "path": "x.mp4", "split": "train", "labels": {"verb": 0, "noun": 0}}
    return Sample(**{**fields, **changes})  # type: ignore[arg-type]


# --- what it keeps -----------------------------------------------------------------------------


def test_rows_and_metadata_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "made" / "samples.parquet"
    written = build_samples("epic", CLASSES, ROWS)
    write_samples(written, path)
    assert [file.name for file in path.parent.iterdir()] == ["samples.parquet"]
    samples = read_samples(path)
    assert (samples.dataset, samples.classes) == ("epic", CLASSES)
    assert samples.heads == {"verb": 3, "noun": 2}
    assert samples.splits() == {"train": 2, "test": 1, "val": 1}
    assert len(samples) == 4
    assert [samples.row(index) for index in range(4)] == ROWS
    assert samples.table.equals(written.table, check_metadata=True)


def test_plain_pyarrow_reads_the_file(tmp_path: Path) -> None:
    write_samples(build_samples("epic", CLASSES, ROWS), tmp_path / "samples.parquet")
    table = pq.read_table(tmp_path / "samples.parquet")
    assert table.schema.remove_metadata() == pa.schema(
        {
            "sample_id": pa.string(),
            "path": pa.string(),
            "split": pa.string(),
            "start_sec": pa.float64(),
            "stop_sec": pa.float64(),
            "label_verb": pa.int32(),
            "label_noun": pa.int32(),
        }
    )
    assert table["label_verb"].to_pylist() == [0, 2, None, 1]
    assert table["stop_sec"].to_pylist() == [2.25, None, 4.0, None]
    assert json.loads(table.schema.metadata[b"dualkd"]) == {"dataset": "epic", "classes": CLASSES}


def test_taking_and_filtering_keep_order_and_metadata() -> None:
    samples = build_samples("epic", CLASSES, ROWS)
    assert [samples.take([3, 0]).row(index) for index in range(2)] == [ROWS[3], ROWS[0]]
    both = samples.of_splits(["val", "train"])
    assert both.table["sample_id"].to_pylist() == ["P01_01", "-b", "d"]
    again = samples_from_table(samples.take(range(3)).of_splits(["test"]).table, "cache")
    assert (again.classes, again.row(0)) == (CLASSES, ROWS[2])
    assert len(samples.of_splits([])) == 0


def test_a_table_without_rows_is_a_table() -> None:
    assert len(build_samples("epic", CLASSES, [])) == 0


def test_a_failed_write_leaves_the_table_that_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "samples.parquet"
    write_samples(build_samples("epic", CLASSES, ROWS), path)
    before = path.read_bytes()

    def full(_table: pa.Table, where: Path) -> None:
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write_samples(build_samples("epic", CLASSES, ROWS[:1]), path)
    assert path.read_bytes() == before


# --- rows that it refuses ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([tiny(), tiny(), tiny(sample_id="y")], "1 sample ids that repeat: x$"),
        ([tiny(labels={"verb": 3})], r"head 'verb' outside its 3 classes \(0 to 2\): x has 3"),
        ([tiny(labels={"noun": -1})], r"head 'noun' outside its 2 classes \(0 to 1\): x has -1"),
        ([tiny(labels={"verbs": 0})], r"heads with labels but no classes \(there are verb, noun"),
        ([tiny(path="/etc/x.mp4")], "not inside the dataset's root: x has '/etc/x.mp4'"),
        ([tiny(path="../x.mp4")], "not inside the dataset's root: x has '../x.mp4'"),
        ([tiny(path="a/../../x.mp4")], "not inside the dataset's root"),
        ([tiny(path="a/..")], "not inside the dataset's root"),
        ([tiny(path="")], "1 rows without path: row 0"),
        ([tiny(sample_id="")], "1 rows without sample_id: row 0"),
        ([tiny(), tiny(sample_id=None)], "1 rows without sample_id: row 1"),
        ([tiny(split="")], "1 rows without split: row 0"),
        ([tiny(start_sec=None)], "1 rows without start_sec: row 0"),
        ([tiny(start_sec=2.0, stop_sec=1.0)], "stop before they start: x from 2.0 to 1.0 s"),
        ([tiny(start_sec=2.0, stop_sec=2.0)], "stop before they start: x from 2.0 to 2.0 s"),
        ([tiny(start_sec=-0.5)], "start before 0 or .*: x from -0.5 to None s"),
        ([tiny(start_sec=math.nan)], "x from nan to None s"),
        ([tiny(start_sec=math.inf)], "x from inf to None s"),
        ([tiny(stop_sec=math.nan)], "x from 0.0 to nan s"),
    ],
)
def test_a_bad_row_is_refused_by_name_and_value(rows: list[Sample], message: str) -> None:
    with pytest.raises(SamplesError, match=message):
        build_samples("epic", CLASSES, rows)


def test_of_many_bad_rows_some_are_named_and_all_are_counted() -> None:
    rows = [tiny(sample_id=f"s{index}", labels={"verb": 9}) for index in range(8)]
    with pytest.raises(SamplesError, match=r"^8 labels .*: s0 has 9, .*, s4 has 9 and 3 more$"):
        build_samples("epic", CLASSES, rows)


def test_labels_may_be_missing() -> None:
    samples = build_samples("epic", CLASSES, [tiny(labels={}), tiny(sample_id="y")])
    assert samples.row(0).labels == {}
    assert samples.row(1).labels == {"verb": 0, "noun": 0}


def test_a_split_without_rows_is_refused_with_those_there_are() -> None:
    samples = build_samples("epic", CLASSES, ROWS)
    with pytest.raises(SamplesError, match=r"no samples of split 'tset'; .* test, train, val"):
        samples.of_splits(["train", "tset"])


# --- files that it refuses ---------------------------------------------------------------------


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(SamplesError, match=r"no samples table at .*none.parquet; `dualkd prepare`"):
        read_samples(tmp_path / "none.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really PAR1", b"sample_id,path\n"])
def test_a_file_that_is_not_parquet_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    path.write_bytes(content)
    with pytest.raises(SamplesError, match=r"samples.parquet is not a readable parquet file"):
        read_samples(path)


def _with_metadata(metadata: dict[str, str] | None) -> Callable[[Samples], pa.Table]:
    return lambda samples: samples.table.replace_schema_metadata(metadata)


def _relabelled(column: str, kind: pa.DataType) -> Callable[[Samples], pa.Table]:
    def change(samples: Samples) -> pa.Table:
        table = samples.table
        at = table.column_names.index(column)
        return table.set_column(at, column, table[column].cast(kind))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_metadata(None), "lacks the metadata of a samples table; `dualkd prepare`"),
        (_with_metadata({"pandas": "{}"}), "lacks the metadata"),
        (_with_metadata({"dualkd": "not JSON"}), "lacks the metadata"),
        (_with_metadata({"dualkd": "[]"}), "lacks the metadata"),
        (_with_metadata({"dualkd": '{"dataset": "epic"}'}), "lacks the metadata"),
        (_with_metadata({"dualkd": '{"dataset": "epic", "classes": 3}'}), "lacks the metadata"),
        (
            lambda samples: samples.table.drop_columns(["split", "label_noun"]),
            "lacks the columns split, label_noun",
        ),
        (_relabelled("label_verb", pa.float32()), "label_verb .* is float, expected int32"),
        (_relabelled("start_sec", pa.string()), "start_sec .* is string, expected double"),
        (_relabelled("path", pa.large_string()), "path .* is large_string, expected string"),
        (
            lambda samples: pa.concat_tables([samples.table, samples.table.slice(1, 1)]),
            "sample ids that repeat: -b",
        ),
    ],
)
def test_a_file_with_another_content_is_refused_by_name(
    change: Callable[[Samples], pa.Table], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "samples.parquet"
    pq.write_table(change(build_samples("epic", CLASSES, ROWS)), path)
    with pytest.raises(SamplesError, match=message) as caught:
        read_samples(path)
    assert str(path) in str(caught.value)
