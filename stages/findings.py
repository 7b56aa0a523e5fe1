"""What a run found: videos won and lost, classes, confusions, how whole the cache is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stages.charts import Cell, grid_chart
from stages.wording import count, percent, plural

_MOST_CLASSES = 30  # of a confusion matrix that can be read
Array = NDArray[Any]

_KINDS = {
    "missing": "not extracted yet",
    "unreadable_video": "whose video could not be read",
    "non_finite_output": "with a teacher output that is not finite",
}


@dataclass(frozen=True)
class Comparison:
    """The student against its baseline on the same videos; rows of the answers, ascending.

    Attributes:
        won: videos that only the student gets right.
        lost: videos that only the baseline gets right.
    """

    won: NDArray[np.int64]
    lost: NDArray[np.int64]


def compare(answers: Mapping[str, Array]) -> Comparison:
    """Compare video by video."""
    baseline, student = (
        answers[f"{role}_answer"] == answers["label"] for role in ("baseline", "student")
    )
    return Comparison(np.flatnonzero(student & ~baseline), np.flatnonzero(baseline & ~student))


def spread_out(rows: NDArray[np.int64], labels: NDArray[np.int64], most: int) -> list[int]:
    """So many of the rows: the first of each class, then the second of each, as they stand."""
    seen: Counter[int] = Counter()
    turns = []
    for row in rows.tolist():
        turns.append((seen[int(labels[row])], row))
        seen[int(labels[row])] += 1
    return [row for _, row in sorted(turns)[:most]]


def together(answers: Mapping[str, Mapping[str, Array]], sizes: Sequence[int]) -> dict[str, Array]:
    """All heads as one: a tuple of classes by its number, so that it is right where each head is.

    Args:
        answers: by head `label` and `<role>_answer`, each (N,).
        sizes: number of classes of each head.
    """
    first = next(iter(answers.values()))
    columns = [name for name in first if name == "label" or name.endswith("_answer")]
    return {
        name: np.ravel_multi_index(tuple(of_head[name] for of_head in answers.values()), sizes)
        for name in columns
    }


def by_gain(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of `by_class.csv`, the largest gain first, empty classes last."""
    return sorted(rows, key=lambda row: math.inf if row["gain"] is None else -row["gain"])


def confusion_chart(answers: Mapping[str, Array], classes: Sequence[str]) -> Markup | None:
    """The student's confusion matrix; None where there are too many classes to read one."""
    if len(classes) > _MOST_CLASSES:
        return None
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (answers["label"], answers["student_answer"]), 1)
    cells: list[list[Cell | None]] = []
    for row, (actual, numbers) in enumerate(zip(classes, counts.tolist(), strict=True)):
        whole = max(sum(numbers), 1)
        cells.append(
            [
                Cell(
                    kind="student" if row == column else "wrong",
                    strength=number / whole,
                    title=f"{actual}, answered {classes[column]}: {plural(number, 'video')}",
                    text=str(number) if number else "",
                )
                for column, number in enumerate(numbers)
            ]
        )
    label = "Confusion matrix of the distilled student: a row for each label, a column per answer"
    return grid_chart(label, classes, classes, cells, cell_width=27, cell_height=24, slanted=True)


def explain_coverage(rows: Mapping[str, int]) -> str:
    """How many rows a cache holds and what became of the others, in words."""
    whole = sum(rows.values())
    bad = [f"{count(rows[kind])} {_KINDS[kind]}" for kind in _KINDS if rows.get(kind)]
    valid = rows["valid"]
    if not bad:
        return f"All {count(whole)} rows are valid."
    return (
        f"{count(valid)} of {count(whole)} rows ({percent(valid / whole)}) are valid; the rest: "
        + (", ".join(bad) + ".")
    )
