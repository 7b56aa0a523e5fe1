"""The samples table: one row per labelled stretch of one video, in one parquet file.

Columns: `sample_id`, `path`, `split` (strings), `start_sec`, `stop_sec` (float64, seconds since the
first frame; a null stop is the end of the video) and one `label_<head>` (int32, null where the
split has no labels) per head. The file's metadata holds the dataset's name and the class names.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.sample import Sample

__all__ = [
    "Sample",
    "Samples",
    "SamplesError",
    "build_samples",
    "check_samples",
    "read_parquet",
    "read_samples",
    "samples_from_table",
    "write_parquet",
    "write_samples",
]

_METADATA_KEY = b"dualkd"
_SHOWN = 5  # bad rows named in a message
_COLUMNS = {
    "sample_id": pa.string(),
    "path": pa.string(),
    "split": pa.string(),
    "start_sec": pa.float64(),
    "stop_sec": pa.float64(),
}
_LABEL = pa.int32()


class SamplesError(ValueError):
    """The samples table is not what it must be; the message names rows and values."""


@dataclass(frozen=True)
class Samples:
    """A checked samples table.

    Attributes:
        dataset: its name.
        classes: class names by head, in index order.
        table: the columns that the module's docstring lists.
    """

    dataset: str
    classes: dict[str, list[str]]
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def heads(self) -> dict[str, int]:
        """Number of classes by head."""
        return {head: len(names) for head, names in self.classes.items()}

    @property
    def classes_sha256(self) -> str:
        """Digest of the class names: sha256 over canonical JSON of head → names in index order."""
        text = json.dumps(self.classes, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def labels(self, absent: int) -> dict[str, NDArray[np.int64]]:
        """By head (N,), `absent` where a sample has none."""
        return {
            head: pc.fill_null(self.table[f"label_{head}"], absent).to_numpy().astype(np.int64)
            for head in self.heads
        }

    def splits(self) -> dict[str, int]:
        """Number of samples by split."""
        return dict(Counter(self.table["split"].to_pylist()))

    def of_splits(self, splits: Iterable[str]) -> Samples:
        """The rows of some splits, in the table's order.

        Raises:
            SamplesError: a split has no rows.
        """
        wanted, present = list(splits), self.splits()
        for split in wanted:
            if split not in present:
                have = ", ".join(sorted(present))
                raise SamplesError(f"no samples of split {split!r}; the table has {have}")
        mask = pc.is_in(self.table["split"], value_set=pa.array(wanted, pa.string()))
        return Samples(self.dataset, self.classes, self.table.filter(mask))

    def take(self, rows: Iterable[int]) -> Samples:
        """The given rows, in the given order."""
        indices = pa.array(rows, type=pa.int64())
        return Samples(self.dataset, self.classes, self.table.take(indices))

    def digest(self) -> str:
        """Sha256 over classes, ids, paths, stretches and labels, in order; the split is no part."""
        rows = self.table.drop_columns(["split"]).to_pylist()
        return hashlib.sha256(json.dumps([self.classes, rows]).encode()).hexdigest()

    def row(self, index: int) -> Sample:
        """One row."""
        row = self.table.slice(index, 1).to_pylist()[0]
        labels = {head: row[f"label_{head}"] for head in self.classes}
        return Sample(
            sample_id=row["sample_id"],
            path=row["path"],
            split=row["split"],
            labels={head: label for head, label in labels.items() if label is not None},
            start_sec=row["start_sec"],
            stop_sec=row["stop_sec"],
        )


def build_samples(
    dataset: str, classes: Mapping[str, list[str]], rows: Iterable[Sample]
) -> Samples:
    """Make a checked table from rows.

    Raises:
        SamplesError: a row has a label of a head without classes; else see `check_samples`.
    """
    listed = list(rows)
    stray = {head for row in listed for head in row.labels} - set(classes)
    _refuse(sorted(stray), f"heads with labels but no classes (there are {', '.join(classes)})")
    columns: dict[str, pa.Array] = {
        name: pa.array([getattr(row, name) for row in listed], kind)
        for name, kind in _COLUMNS.items()
    }
    for head in classes:
        labels = [row.labels.get(head) for row in listed]
        columns[f"label_{head}"] = pa.array(labels, _LABEL)
    metadata = {
        "dataset": dataset,
        "classes": {head: list(names) for head, names in classes.items()},
    }
    table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: json.dumps(metadata)})
    return check_samples(Samples(dataset, metadata["classes"], table))  # type: ignore[arg-type]


def write_samples(samples: Samples, path: Path) -> None:
    """Write the table; the file appears whole or not at all."""
    write_parquet(samples.table, path)


def read_samples(path: Path) -> Samples:
    """Read and check a table.

    Raises:
        SamplesError: the file is missing, is no samples table, or holds bad rows.
    """
    return samples_from_table(read_parquet(path, "samples table"), str(path))


def samples_from_table(table: pa.Table, source: str) -> Samples:
    """Check a table that was read from elsewhere, such as a cache.

    Raises:
        SamplesError: it is no samples table, or holds bad rows; `source` is named.
    """
    try:
        metadata: dict[str, Any] = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        dataset = str(metadata["dataset"])
        classes = {head: list(names) for head, names in metadata["classes"].items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise SamplesError(
            f"{source} lacks the metadata of a samples table; `dualkd prepare` writes it"
        ) from error
    try:
        return check_samples(Samples(dataset, classes, table))
    except SamplesError as error:
        raise SamplesError(f"{source}: {error}") from error


def check_samples(samples: Samples) -> Samples:
    """Return the table if every row is sound.

    Raises:
        SamplesError: a column is missing or of another type, a cell is empty that must not be, an
            id occurs twice, a label is outside the classes, a path leaves the root, or a stretch is
            no stretch of time.
    """
    table = samples.table
    _check_columns(table, samples.classes)
    ids = table["sample_id"].to_pylist()
    _refuse([name for name, count in Counter(ids).items() if count > 1], "sample ids that repeat")
    for head, names in samples.classes.items():
        column = table[f"label_{head}"]
        outside = pc.or_(pc.less(column, 0), pc.greater_equal(column, len(names)))
        bad = table.filter(pc.fill_null(outside, fill_value=False)).to_pylist()
        _refuse(
            [f"{row['sample_id']} has {row[f'label_{head}']}" for row in bad],
            f"labels of head {head!r} outside its {len(names)} classes (0 to {len(names) - 1})",
        )
    paths = zip(ids, table["path"].to_pylist(), strict=True)
    _refuse(
        [
            f"{name} has {path!r}"
            for name, path in paths
            if path.startswith("/") or ".." in path.split("/")
        ],
        "paths that are not inside the dataset's root",
    )
    # Written so that NaN is refused: it is neither before nor after anything.
    start, stop = table["start_sec"], pc.fill_null(table["stop_sec"], math.inf)
    sound = pc.and_(pc.greater_equal(start, 0.0), pc.greater(stop, start))
    bad = table.filter(pc.invert(sound)).to_pylist()
    _refuse(
        [f"{row['sample_id']} from {row['start_sec']} to {row['stop_sec']} s" for row in bad],
        "samples that start before 0 or stop before they start",
    )
    return samples


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table of `prepare`; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial)
    partial.replace(path)


def read_parquet(path: Path, what: str) -> pa.Table:
    """Read a table of `prepare`.

    Raises:
        SamplesError: the file is missing, or is not parquet; the message names `what`.
    """
    if not path.is_file():
        raise SamplesError(f"no {what} at {path}; `dualkd prepare` makes it")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise SamplesError(
            f"{path} is not a readable parquet file ({error}); `dualkd prepare` makes it"
        ) from error


def _check_columns(table: pa.Table, classes: Mapping[str, list[str]]) -> None:
    wanted = _COLUMNS | {f"label_{head}": _LABEL for head in classes}
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise SamplesError(f"the samples table lacks the columns {', '.join(missing)}")
    for name, kind in wanted.items():
        if table[name].type != kind:
            raise SamplesError(
                f"column {name} of the samples table is {table[name].type}, expected {kind}"
            )
    for name in ("sample_id", "path", "split", "start_sec"):
        empty = pc.is_null(table[name])
        if _COLUMNS[name] == pa.string():
            empty = pc.or_kleene(empty, pc.equal(table[name], ""))
        rows = pc.indices_nonzero(empty).to_pylist()
        _refuse([f"row {row}" for row in rows], f"rows without {name}")


def _refuse(bad: list[str], what: str) -> None:
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise SamplesError(f"{len(bad)} {what}: {', '.join(bad[:_SHOWN])}{more}")
