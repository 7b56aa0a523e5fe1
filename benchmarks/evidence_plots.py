"""Plots of the evidence: every seed's gain, its mean and its interval, by setting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evidence_figures import (
    STRONGER,
    Row,
    alike,
    by_setting,
    differences,
    knobs,
    members,
    reference_of,
)
from evidence_fit import Fit
from stages.ablation_table import CHART_STYLE
from stages.charts import Spread, dot_chart
from stages.intervals import estimate
from stages.wording import points


def group_spreads(rows: Sequence[Row], group: str) -> list[Spread]:
    """The gains of each setting of a group, paired by seed; beside `main` the method with λ 8."""
    test = by_setting(rows, "test_top1")
    pairs = [(name, reference_of(row)) for name, row in members(rows, group).items()]
    if group == "main":
        pairs.append((STRONGER[group], "main-labels"))
    spreads = []
    for name, reference in pairs:
        gains = differences(test, name, reference)
        if name == reference or not gains:
            continue
        found = estimate(list(gains.values()))
        dots = [(f"{name}, seed {seed}", value) for seed, value in gains.items()]
        spreads.append(Spread(f"{name} − {reference}", "method", dots, found.mean, found.interval))
    return spreads


def knob_spreads(rows: Sequence[Row], fitted: Fit) -> list[Spread]:
    """The gains of each knob over its default, means and intervals those of the fit.

    A dot is beside the default of that seed, the mean of it where it was trained again.
    """
    students = alike(rows)
    spreads = []
    for name, _, default in knobs(rows, fitted):
        of_seed = {
            seed: np.mean([value for other, value in students[default] if other == seed])
            for seed, _ in students[default]
        }
        dots = [
            (f"{name}, seed {seed}", float(value - of_seed[seed]))
            for seed, value in students[name]
            if seed in of_seed
        ]
        found = fitted.difference(name, default)
        spreads.append(Spread(name, "method", dots, found.mean, found.interval))
    return spreads


def draw(spreads: Sequence[Spread], what: str) -> str:
    """A row of dots for each."""
    drawn = dot_chart(
        f"Gains in top-1 on the test split: {what}",
        spreads,
        x_name="points of test top-1; dot: a seed, diamond: the mean, bar: 95 %",
        mark=0.0,
        show=points,
        style=CHART_STYLE,
    )
    return f"{drawn}\n"
