"""What a run found: the gain and how sure it is, classes, confusions, teacher time saved."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from stages.charts import Cell, Line, grid_chart, line_chart
from stages.wording import count, figure, percent, plural

_MOST_CLASSES = 30  # of a confusion matrix that can be read
_CONFUSIONS = 8
_STUDENTS = 5  # on the axis of teacher time
Array = NDArray[Any]

_KINDS = {
    "missing": "not extracted yet",
    "unreadable_video": "whose video could not be read",
    "non_finite_output": "with a teacher output that is not finite",
}


@dataclass(frozen=True)
class Comparison:
    """The student against its baseline on the same videos.

    Attributes:
        won: videos that only the student gets right.
        lost: videos that only the baseline gets right.
        interval: 95 % of the gain in top-1; None where there is but one video.
    """

    won: int
    lost: int
    interval: tuple[float, float] | None

    @property
    def sure(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


def compare(answers: Mapping[str, Array]) -> Comparison:
    """Compare video by video: a paired interval is narrower than that of two accuracies."""
    right = {
        role: answers[f"{role}_answer"] == answers["label"] for role in ("baseline", "student")
    }
    gains = right["student"].astype(int) - right["baseline"].astype(int)
    interval = None
    if len(gains) > 1:
        half = 1.96 * float(gains.std(ddof=1)) / math.sqrt(len(gains))
        interval = (float(gains.mean()) - half, float(gains.mean()) + half)
    return Comparison(int((gains > 0).sum()), int((gains < 0).sum()), interval)


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


def by_gain(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `by_class.csv` with their gain, the largest first, empty classes last."""
    filled = []
    for row in rows:
        scored = row["student"] is not None and row["baseline"] is not None
        filled.append({**row, "gain": row["student"] - row["baseline"] if scored else None})
    return sorted(filled, key=lambda row: math.inf if row["gain"] is None else -row["gain"])


@dataclass(frozen=True)
class Confusion:
    """One pair of classes that the student mistakes."""

    actual: str
    answered: str
    student: int
    baseline: int


def confusions(answers: Mapping[str, Array], classes: Sequence[str]) -> list[Confusion]:
    """The student's most frequent mistakes, and how often the baseline makes them."""

    def pairs(role: str) -> Counter[tuple[int, int]]:
        both = zip(answers["label"].tolist(), answers[f"{role}_answer"].tolist(), strict=True)
        return Counter(pair for pair in both if pair[0] != pair[1])

    baseline, student = pairs("baseline"), pairs("student")
    return [
        Confusion(classes[actual], classes[answered], number, baseline[actual, answered])
        for (actual, answered), number in student.most_common(_CONFUSIONS)
    ]


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


@dataclass(frozen=True)
class Saving:
    """Teacher time: paid once for the cache, or again by every student.

    Attributes:
        rows: (sample, view) pairs that the teachers saw for the cache.
        clips: clips of one epoch of a student.
        epochs: of a student.
        cache_ms: both teachers, per clip.
        online_ms: the teachers that the student's loss asks, per clip; 0 if it asks none.
    """

    rows: int
    clips: int
    epochs: int
    cache_ms: float
    online_ms: float

    @property
    def once_sec(self) -> float:
        """Paid once, for the cache."""
        return self.rows * self.cache_ms / 1000

    @property
    def student_sec(self) -> float:
        """Paid by every student without a cache."""
        return self.clips * self.epochs * self.online_ms / 1000

    @property
    def break_even(self) -> str:
        """When the cache has paid for itself, in words."""
        students = self.once_sec / self.student_sec
        if students <= 1:
            # Rounded first: 4.000000001 epochs are 4.
            epochs = math.ceil(round(students * self.epochs, 6))
            return f"after {epochs} of the first student’s {plural(self.epochs, 'epoch')}"
        return f"with student number {math.ceil(round(students, 6))}"

    def chart(self) -> tuple[str, Markup]:
        """Teacher time by number of students: its unit, and the lines."""
        longest = max(_STUDENTS * self.student_sec, self.once_sec)
        name, unit = next(
            (name, unit)
            for name, unit in (("hours", 3600), ("minutes", 60), ("seconds", 1))
            if longest >= 2 * unit or unit == 1
        )
        online = [(n, n * self.student_sec / unit) for n in range(_STUDENTS + 1)]
        cached = [(n, self.once_sec / unit) for n in range(_STUDENTS + 1)]
        lines = [
            Line("teachers online", "baseline", online),
            Line("from the cache", "student", cached),
        ]
        label = (
            f"Teacher time in {name} by number of students: online it grows to "
            f"{figure(online[-1][1])}, from the cache it stays at {figure(cached[-1][1])}"
        )
        return name, line_chart(label, lines, x_name="students", low=0.0, show=_tick)


def _tick(value: float) -> str:
    return count(value) if value >= 1000 else figure(value)


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
