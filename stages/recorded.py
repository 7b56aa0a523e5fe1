"""What a cache records of its making, beside what is here and now."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cache import TeacherCache, package_versions
from pipeline.video import decoder_version
from stages.progress import console

_SHOWN = 10


def environment() -> dict[str, str]:
    """What a cache's provenance records of the machine, beyond the versions of packages."""
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "decoder": decoder_version(),
    }


def other_versions(
    packages: Mapping[str, Sequence[str]], provenance: Mapping[str, Any]
) -> dict[str, tuple[str, str]]:
    """What is another version here than when the rows of a cache were made.

    Args:
        packages: package → the versions that made rows.
        provenance: the cache's.

    Returns:
        name → recorded, present: of packages, and of machine, Python and decoder.
    """
    here = package_versions()
    others = {
        name: (" and ".join(made), here.get(name, "none"))
        for name, made in packages.items()
        if list(made) != [here.get(name)]
    }
    for name, present in environment().items():
        recorded = provenance.get(name, present)
        if recorded != present:
            others[name] = (str(recorded), present)
    return others


def tell_other_versions(cache: TeacherCache) -> None:
    """Say, on the progress' console, which versions are others here: told, never refused."""
    others = other_versions(cache.packages, cache.provenance)
    if others:
        told = "; ".join(f"{name} {made}, here {now}" for name, (made, now) in others.items())
        console.print(f"{cache.place} was made with other versions: {told}")


def compare_samples(recorded: pa.Table, present: pa.Table) -> tuple[list[str], list[str]]:
    """Look recorded samples up by id in the samples table of today.

    Args:
        recorded: a cache's samples table.
        present: the table of today, in any order.

    Returns:
        the ids that are not listed any more; and for every other recorded sample a sentence for
        each of file, stretch, split and label that is another one now.
    """
    places = pc.index_in(recorded["sample_id"], value_set=present["sample_id"].combine_chunks())
    lost = recorded["sample_id"].filter(pc.is_null(places)).to_pylist()
    known, today = recorded.filter(pc.is_valid(places)), present.take(places.drop_null())
    return lost, list(_differences(known, today))


def _differences(recorded: pa.Table, present: pa.Table) -> Iterator[str]:
    """Compare two tables of the same samples in the same order."""
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


def in_lines(differences: Sequence[str]) -> str:
    """The first of many differences, one to a line."""
    hidden = len(differences) - _SHOWN
    more = [f"  … and {hidden} more"] if hidden > 0 else []
    return "\n".join([*(f"  {difference}" for difference in differences[:_SHOWN]), *more])
