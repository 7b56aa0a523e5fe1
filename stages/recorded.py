"""What a cache records of its making, beside what is here and now."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.video import decoder_version


def environment() -> dict[str, str]:
    """What a cache's provenance records of the machine, beyond the versions of packages."""
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "decoder": decoder_version(),
    }


def sample_differences(recorded: pa.Table, present: pa.Table) -> Iterator[str]:
    """Tell every sample whose id, file, stretch, split or label is another one now.

    Args:
        recorded: a cache's samples table.
        present: rows of the samples table of today, in the same order.
    """
    names = recorded["sample_id"].to_pylist()
    for column in present.column_names:
        absent = [None] * len(names)
        stored = recorded[column].to_pylist() if column in recorded.column_names else absent
        for name, old, new in zip(names, stored, present[column].to_pylist(), strict=True):
            if old != new:
                yield (
                    f"sample {name} was recorded with {column} {old!r}, the samples table now "
                    f"says {new!r}"
                )


def recorded_samples_now(recorded: pa.Table, present: pa.Table) -> tuple[pa.Table, list[str]]:
    """Look recorded samples up by id in the samples table of today.

    Returns:
        their rows of today in the recorded order, and the ids that are not among them.
    """
    ids, known = recorded["sample_id"], present["sample_id"].combine_chunks()
    places = pc.index_in(ids, value_set=known)
    lost = ids.filter(pc.is_null(places)).to_pylist()
    return present.take(places.drop_null()), lost
