"""A mean over a few runs, and how far off it may be: the 95 % interval of Student's t."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SHARE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: of the values.
        interval: mean ± t · s / √n; None of a single value.
        values: in the order given.
    """

    mean: float
    interval: tuple[float, float] | None
    values: tuple[float, ...]


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of values that were drawn alike, at least one."""
    mean, interval = statistics.fmean(values), None
    if len(values) > 1:
        half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
        interval = (mean - half, mean + half)
    return Estimate(mean, interval, tuple(values))


def t_quantile(degrees: int, share: float = SHARE) -> float:
    """The t that so large a share of Student's distribution lies within, of ±t.

    Args:
        degrees: of freedom, at least 1.
        share: in (0, 1).
    """
    low, high = 0.0, 1.0
    while _within(high, degrees) < share:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _within(middle, degrees) < share else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """P(|T| ≤ t), in closed form: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
