"""Teacher time: paid once for the cache, or again by every student in every epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from stages.charts import Line, line_chart
from stages.report_inputs import Inputs
from stages.wording import count, figure, plural

_STUDENTS = 5  # on the axis, before anybody chooses others
_TABLE = (1, 2, 5, 10, 50)  # students
_EPOCHS = (30, 100, 300)  # beside those of the run


@dataclass(frozen=True)
class Saving:
    """Teacher time with and without a cache.

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
    def epoch_sec(self) -> float:
        """Paid in every epoch of every student without a cache."""
        return self.clips * self.online_ms / 1000

    @property
    def student_sec(self) -> float:
        """Paid by every student without a cache."""
        return self.epochs * self.epoch_sec

    @property
    def break_even(self) -> str:
        """When the cache has paid for itself, in words."""
        students = self.once_sec / self.student_sec
        if students <= 1:
            # Rounded first: 4.000000001 epochs are 4.
            epochs = math.ceil(round(students * self.epochs, 6))
            return f"after {epochs} of the first student’s {plural(self.epochs, 'epoch')}"
        return f"with student number {math.ceil(round(students, 6))}"

    @property
    def students(self) -> int:
        """How many the chart begins with."""
        return _STUDENTS

    @property
    def table(self) -> tuple[list[int], list[tuple[int, list[float]]]]:
        """Some numbers of epochs; and by number of students, seconds online for each of them."""
        epochs = sorted({self.epochs, *_EPOCHS})
        rows = [(n, [n * each * self.epoch_sec for each in epochs]) for n in _TABLE]
        return epochs, rows

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


def find_saving(inputs: Inputs) -> Saving:
    """From the cache's rows, the student's log and the teachers' time per clip."""
    rows: Mapping[str, int] = inputs.cache["rows"]
    student = inputs.logs["student"]
    both = inputs.scores["vit"].ms_per_clip + inputs.scores["cnn"].ms_per_clip
    online = 0.0
    if "rkd" in student:  # it reads the ViT's features alone
        online = inputs.scores["vit"].ms_per_clip
    if "kd" in student or "sdd" in student:
        online = both
    return Saving(
        rows=rows["valid"] + rows["non_finite_output"],
        clips=inputs.distill["rows_per_epoch"],
        epochs=len(student["epoch"]),
        cache_ms=both,
        online_ms=online,
    )


def _tick(value: float) -> str:
    return count(value) if value >= 1000 else figure(value)
