"""Teacher time: the arithmetic that the report shows."""

from __future__ import annotations

from stages import saving


def test_teacher_time_is_the_arithmetic_on_the_page() -> None:
    found = saving.Saving(rows=2400, clips=600, epochs=14, cache_ms=50.0, online_ms=50.0)
    assert (found.once_sec, found.student_sec) == (120.0, 420.0)
    assert found.break_even == "after 4 of the first student’s 14 epochs"
    short = saving.Saving(rows=2400, clips=600, epochs=1, cache_ms=50.0, online_ms=50.0)
    assert short.break_even == "with student number 4"


def test_online_time_by_students_and_epochs() -> None:
    found = saving.Saving(rows=2400, clips=600, epochs=14, cache_ms=50.0, online_ms=50.0)
    epochs, rows = found.table
    assert epochs == [14, 30, 100, 300]
    assert rows[2] == (5, [5 * 14 * 30.0, 5 * 30 * 30.0, 5 * 100 * 30.0, 5 * 300 * 30.0])
