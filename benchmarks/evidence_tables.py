"""Tables and plots of the evidence, from its CSV files and nothing else.

python benchmarks/evidence_tables.py               # prints the tables, writes docs/results/*.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence import read_rows
from making import print_table
from stages.ablation_table import CHART_STYLE
from stages.charts import Spread, dot_chart
from stages.files import write_text
from stages.intervals import Estimate, estimate
from stages.wording import percent, points

Row = Mapping[str, Any]
Figures = Mapping[str, Mapping[int, float]]
"""Of a setting, by seed."""


@dataclass(frozen=True)
class Claim:
    """Something that words claim, as a difference of two settings on the same seeds."""

    words: str
    setting: str
    against: str


CLAIMS = (
    *(
        Claim(f"{words}{where}", f"{group}-{one}", f"{group}-{other}")
        for group, where in (
            ("main", ""),
            ("student", ", the larger student"),
            ("size", ", half the videos"),
        )
        for words, one, other in (
            ("the method helps: all − labels", "all", "labels"),
            ("two teachers help: uniform − labels", "uniform", "labels"),
            ("DATW over uniform: datw − uniform", "datw", "uniform"),
            ("SDD and RKD add: all − datw", "all", "datw"),
        )
    ),
    Claim("SDD adds: datw_sdd − datw", "main-datw_sdd", "main-datw"),
    Claim("SDD adds beside RKD: all − datw_rkd", "main-all", "main-datw_rkd"),
    Claim("RKD adds: datw_rkd − datw", "main-datw_rkd", "main-datw"),
    Claim("RKD adds beside SDD: all − datw_sdd", "main-all", "main-datw_sdd"),
    Claim("the CNN, like the student, helps most: kd_cnn − kd_vit", "main-kd_cnn", "main-kd_vit"),
    Claim("a fixed φ is better: datw_sdd − learned_sdd", "main-datw_sdd", "main-learned_sdd"),
    Claim("the cache costs nothing: 4 cached views − fresh ones online", "main-all", "online-all"),
    Claim("nor do 8 of them", "views-8-all", "online-all"),
    Claim("nor does rounding: 20 cached views − the same online", "views-20-all", "online-all"),
    Claim("8-bit fields cost nothing: fixed8 − float16", "fields-fixed8-all", "main-all"),
)
REFERENCE = {
    "main": "main-labels",
    "student": "student-labels",
    "size": "size-labels",
    "views": "main-labels",
    "dim": "main-datw_sdd",
    "grid": "main-datw_sdd",
    "projection": "main-datw_sdd",
    "fields": "main-all",
    "temperature": "main-datw",
    "weight": "main-datw",
    "online": "main-all",
}
"""What the settings of a group are held against."""


def by_setting(rows: Sequence[Row], figure: str) -> Figures:
    """One figure of the CSV: setting → seed → value."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row[figure] is not None:
            found.setdefault(row["setting"], {})[row["seed"]] = row[figure]
    return found


def gain(figures: Figures, setting: str, against: str) -> Estimate | None:
    """The difference on the seeds that both have; None where there is none."""
    one, other = figures.get(setting, {}), figures.get(against, {})
    differences = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    return estimate(differences) if differences else None


def verdict(difference: Estimate | None) -> str:
    """What the interval says of a claim that a difference is above 0."""
    if difference is None or difference.interval is None:
        return "too few seeds"
    low, high = difference.interval
    return "confirmed" if low > 0 else "contrary" if high < 0 else "not confirmed"


def shown(one: Estimate | None, *, difference: bool = False) -> str:
    """A mean and half its interval, in percent or points."""
    if one is None:
        return "–"
    mean = points(one.mean) if difference else f"{100 * one.mean:.1f}"
    if one.interval is None:
        return mean
    return f"{mean} ± {50 * (one.interval[1] - one.interval[0]):.1f}"


def print_group(rows: Sequence[Row], group: str) -> None:
    """Every setting of a group, with its gain over the group's reference."""
    test, val = by_setting(rows, "test_top1"), by_setting(rows, "val_top1")
    minutes = by_setting(rows, "minutes")
    reference = REFERENCE[group]
    lines = []
    for setting in dict.fromkeys(row["setting"] for row in rows if row["group"] == group):
        over = None if setting == reference else gain(test, setting, reference)
        of_val = estimate(list(val[setting].values())) if setting in val else None
        lines.append(
            [
                f"`{setting}`",
                len(test[setting]),
                shown(estimate(list(test[setting].values()))),
                shown(over, difference=True),
                shown(of_val),
                f"{estimate(list(minutes[setting].values())).mean:.1f}",
            ]
        )
    print(f"\n## {group}\n")
    head = ["setting", "seeds", "test top-1, %", f"over `{reference}`", "val top-1, %", "min"]
    print_table(head, lines)


def print_claims(rows: Sequence[Row]) -> None:
    """Claim by claim."""
    test = by_setting(rows, "test_top1")
    lines = []
    for claim in CLAIMS:
        difference = gain(test, claim.setting, claim.against)
        seeds = len(difference.values) if difference else 0
        lines.append([claim.words, seeds, shown(difference, difference=True), verdict(difference)])
    print("\n## Claims\n")
    print_table(["claim", "seeds", "points of test top-1", "verdict"], lines)


def chart(rows: Sequence[Row], group: str) -> str:
    """A row of dots for each setting of a group."""
    test = by_setting(rows, "test_top1")
    spreads = []
    for row in {row["setting"]: row for row in rows if row["group"] == group}.values():
        values = test[row["setting"]]
        found = estimate(list(values.values()))
        kind = "labels" if row["variant"] == "labels" else "method"
        dots = [(f"{row['setting']}, seed {seed}", value) for seed, value in values.items()]
        spreads.append(Spread(row["setting"], kind, dots, found.mean, found.interval))
    mark = test.get(REFERENCE[group])
    drawn = dot_chart(
        f"Top-1 on the test split: {group}",
        spreads,
        x_name="top-1 on the test split. Dot: a seed; diamond: the mean; bar: its 95 % interval",
        mark=estimate(list(mark.values())).mean if mark else None,
        show=lambda share: percent(share, 0),
        style=CHART_STYLE,
    )
    return f"{drawn}\n"


def main() -> None:
    """Print the tables, write the plots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="figures_hard")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    rows = read_rows(options.results / f"{options.dataset}.csv")
    groups = list(dict.fromkeys(row["group"] for row in rows))
    print_claims(rows)
    for group in groups:
        print_group(rows, group)
        write_text(options.results / f"{options.dataset}-{group}.svg", chart(rows, group))


if __name__ == "__main__":
    main()
