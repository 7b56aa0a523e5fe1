"""The evidence's rows as figures: means, paired differences, and whether these are other than 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence import read_rows
from evidence_claims import AGAIN
from evidence_fit import Fit
from evidence_settings import SETTINGS
from stages.intervals import SHARE, Estimate, estimate, t_quantile
from stages.wording import points

Row = Mapping[str, Any]
Figures = Mapping[str, Mapping[int, float]]
"""Of a setting, by seed."""

LABELS = ("main", "student", "size", "longer")
"""Groups that are held against labels only; the others against the same variant of `main`."""
STRONGER = {
    "main": "stronger-all",
    "size": "size-sdd8-all",
    "student": "student-sdd8-all",
    "longer": "longer-sdd8-all",
}
"""The method with λ_sdd 8 in the place of a group."""
AGAINST = {
    "fresh-sdd8-all": "stronger-all",
    "stronger-uniform-datw_sdd": "weight-sdd8-datw_sdd",
    "stronger-vit-datw_sdd": f"{AGAIN}weight-sdd8-datw_sdd",
    "stronger-vit_alone-datw_sdd": "stronger-vit-datw_sdd",
    "weighting-centred-datw": f"{AGAIN}main-datw",
    "online-all": "fresh-all",
}
"""Settings that are held against another: what differs in one thing only, of their device."""
KNOBS = ("projection", "dim", "grid", "fields", "temperature", "weight")
"""Groups with few seeds, whose intervals use the noise of all students of the same kind."""
TEACHERS = ("vit", "cnn")


def by_setting(rows: Sequence[Row], figure: str) -> Figures:
    """One figure of the CSV: setting → seed → value."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        value = row.get(figure)  # rows of before have fewer
        if value is not None:
            found.setdefault(row["setting"], {})[row["seed"]] = value
    return found


def with_again(rows: Sequence[Row], path: Path) -> list[Row]:
    """The rows, and those of settings that were trained again on another device."""
    return [
        *rows,
        *({**row, "setting": AGAIN + row["setting"]} for row in read_rows(path)),
    ]


def with_teachers(figures: Figures, path: Path) -> Figures:
    """The figures, and the teachers' as settings with the same value for all seeds."""
    seeds = {seed for of_setting in figures.values() for seed in of_setting}
    known = [row for row in read_rows(path) if (row["split"], row["actions"]) == ("test", "all")]
    return {
        **figures,
        **{name: dict.fromkeys(seeds, row[name]) for row in known for name in TEACHERS},
    }


def members(rows: Sequence[Row], group: str) -> dict[str, Row]:
    """The settings of a group that have rows, in their own order, with one of these."""
    known = {row["setting"]: row for row in rows if row["group"] == group}
    return {name: known[name] for name in SETTINGS if name in known}


def reference_of(row: Row) -> str:
    """The setting that a row's is held against."""
    of_group = f"{row['group']}-labels" if row["group"] in LABELS else f"main-{row['variant']}"
    return AGAINST.get(row["setting"], of_group)


def alike(rows: Sequence[Row]) -> dict[str, list[tuple[int, float]]]:
    """Setting → (seed, test top-1) of all students of one network, all videos, as many steps.

    What was trained again on another device is the same setting once more; a row that stands among
    both is one student.
    """
    students: dict[str, dict[tuple[int, Any], tuple[int, float]]] = {}
    for row in rows:
        if row["group"] == "main" or row["group"] not in LABELS:
            name = row["setting"].removeprefix(AGAIN)
            one = row["seed"], row.get("device")
            students.setdefault(name, {})[one] = (row["seed"], row["test_top1"])
    return {name: [*ones.values()] for name, ones in students.items()}


def mean_of(figures: Figures, setting: str) -> Estimate | None:
    """Over the seeds; None where the setting has none."""
    return estimate(list(figures[setting].values())) if setting in figures else None


def differences(figures: Figures, setting: str, against: str) -> dict[int, float]:
    """By seed, of those that both have."""
    one, other = figures.get(setting, {}), figures.get(against, {})
    return {seed: one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())}


def gain(figures: Figures, setting: str, against: str) -> Estimate | None:
    """The mean of the differences; None where there are none."""
    of_seeds = differences(figures, setting, against)
    return estimate(list(of_seeds.values())) if of_seeds else None


def verdict(difference: Estimate | None) -> str:
    """Where the interval lies, not adjusted for the number of claims."""
    if difference is None or difference.interval is None:
        return "too few seeds"
    low, high = difference.interval
    return "above 0" if low > 0 else "below 0" if high < 0 else "open"


def stands_adjusted(difference: Estimate, claims: int) -> bool:
    """Whether a difference is other than 0 in intervals that miss once in 20 times for all claims.

    As Bonferroni has it: each misses with 0.05 / claims.
    """
    if difference.interval is None:
        return False
    degrees = len(difference.values) - 1
    wider = t_quantile(degrees, 1 - (1 - SHARE) / claims) / t_quantile(degrees)
    low, high = difference.interval
    return abs(difference.mean) > wider * (high - low) / 2


def shown(one: Estimate | None, *, difference: bool = False) -> str:
    """A mean and half its interval, in percent or points."""
    if one is None:
        return "–"
    mean = points(one.mean) if difference else f"{100 * one.mean:.1f}"
    if one.interval is None:
        return mean
    return f"{mean} ± {50 * (one.interval[1] - one.interval[0]):.1f}"


def knobs(rows: Sequence[Row], fitted: Fit) -> list[tuple[str, Row, str]]:
    """The settings that turn a knob, each with one of its rows and its default, in their order.

    Those whose default has no student are left out.
    """
    turned = [
        (name, row, f"main-{row['variant']}")
        for group in KNOBS
        for name, row in members(rows, group).items()
    ]
    return [one for one in turned if one[2] in fitted.settings]
