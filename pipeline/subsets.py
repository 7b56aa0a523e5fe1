"""Subsets: parts of a dataset that are scored on their own too, as EPIC-KITCHENS-100's tail.

One parquet file beside the samples table, written by `prepare`: `sample_id`, and a boolean column
per subset; of a dataset that has none, `sample_id` alone. It decides no row of a cache.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.samples import Samples, SamplesError, read_parquet, write_parquet

_ID = "sample_id"


def write_subsets(samples: Samples, subsets: Mapping[str, Collection[str]], path: Path) -> None:
    """Write which samples are in which subset; the file appears whole or not at all.

    Args:
        samples: the samples table.
        subsets: by name, ids of samples; those that the table lacks do not matter.
        path: where to.
    """
    names = samples.table[_ID].to_pylist()
    columns = {_ID: pa.array(names, pa.string())}
    for subset, members in subsets.items():
        columns[subset] = pa.array([name in members for name in names], pa.bool_())
    write_parquet(pa.table(columns), path)


def read_subsets(path: Path, samples: Samples) -> dict[str, NDArray[np.bool_]]:
    """Which of some samples are in which subset.

    Args:
        path: the file.
        samples: any part of the samples table.

    Returns:
        By name (N,) bool, in the order of the samples.

    Raises:
        SamplesError: the file is missing, is no table of subsets, or lacks a sample.
    """
    again = "`dualkd prepare` makes it"
    table = read_parquet(path, "table of subsets")
    if _ID not in table.column_names:
        raise SamplesError(f"{path} lacks the column {_ID}; {again}")
    for name in table.column_names:
        wanted = pa.string() if name == _ID else pa.bool_()
        if table[name].type != wanted or table[name].null_count:
            raise SamplesError(
                f"column {name} of {path} is {table[name].type} with {table[name].null_count} "
                f"empty cells, expected {wanted} without; {again}"
            )
    places = {name: place for place, name in enumerate(table[_ID].to_pylist())}
    ids = samples.table[_ID].to_pylist()
    strangers = [name for name in ids if name not in places]
    if strangers:
        raise SamplesError(
            f"{path} lacks {len(strangers)} of {len(ids)} samples, as {strangers[0]}; {again}"
        )
    rows = np.array([places[name] for name in ids], np.int64)
    return {
        name: table[name].to_numpy(zero_copy_only=False).astype(bool)[rows]
        for name in table.column_names
        if name != _ID
    }
