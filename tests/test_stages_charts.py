"""Charts: ticks of their axes."""

from __future__ import annotations

import pytest

from stages.charts import ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 6.1, [0, 2, 4, 6, 8]), (3, 3, [2.5, 2.75, 3, 3.25, 3.5])],
)
def test_ticks_are_round_and_hold_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert ticks(low, high) == expected
