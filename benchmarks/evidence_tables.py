"""Tables and plots of the evidence, from its CSV files and nothing else.

python benchmarks/evidence_tables.py               # prints the tables, writes docs/results/*.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evidence import read_rows
from evidence_claims import AGAIN, CLAIMS
from evidence_fit import Fit, fit
from evidence_settings import SETTINGS
from making import print_table
from stages.ablation_table import CHART_STYLE
from stages.charts import Spread, dot_chart
from stages.files import write_text
from stages.intervals import SHARE, Estimate, estimate, t_quantile
from stages.wording import points

Row = Mapping[str, Any]
Figures = Mapping[str, Mapping[int, float]]
"""Of a setting, by seed."""

LABELS = ("main", "student", "size", "longer")
"""Groups that are held against labels only; the others against the same variant of `main`."""
KNOBS = ("projection", "dim", "grid", "fields", "temperature", "weight")
"""Groups with few seeds, whose intervals use the noise of all students of the same kind."""
VIEWS = {1: "views-1", 2: "views-2", 4: "main", 8: "views-8", 20: "views-20", 60: "fresh"}
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


def reference_of(row: Row, rows: Sequence[Row]) -> str:
    """The setting that one is held against; what was trained again on the row's device is."""
    name = f"{row['group']}-labels" if row["group"] in LABELS else f"main-{row['variant']}"
    devices = {one.get("device") for one in rows if one["setting"] == AGAIN + name}
    return AGAIN + name if row.get("device") in devices else name


def alike(rows: Sequence[Row]) -> dict[str, list[tuple[int, float]]]:
    """Setting → (seed, test top-1) of all students of one network, all videos, as many steps.

    What was trained again on another device is the same setting once more.
    """
    students: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["group"] == "main" or row["group"] not in LABELS:
            name = row["setting"].removeprefix(AGAIN)
            students.setdefault(name, []).append((row["seed"], row["test_top1"]))
    return students


def with_teachers(figures: Figures, path: Path) -> Figures:
    """The figures, and the teachers' as settings with the same value for all seeds."""
    seeds = {seed for of_setting in figures.values() for seed in of_setting}
    known = [row for row in read_rows(path) if (row["split"], row["actions"]) == ("test", "all")]
    return {
        **figures,
        **{name: dict.fromkeys(seeds, row[name]) for row in known for name in TEACHERS},
    }


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


def members(rows: Sequence[Row], group: str) -> dict[str, Row]:
    """The settings of a group that have rows, in their own order, with one of these."""
    known = {row["setting"]: row for row in rows if row["group"] == group}
    return {name: known[name] for name in SETTINGS if name in known}


def print_cost(rows: Sequence[Row], what: str) -> None:
    """What each variant's training takes, of one device's rows."""
    minutes = by_setting(rows, "minutes")
    lines = []
    for name, row in members(rows, "main").items():
        mean = estimate(list(minutes[name].values())).mean
        share = mean / estimate(list(minutes["main-labels"].values())).mean
        lines.append([f"`{row['variant']}`", f"{mean:.2f}", f"{share:.2f}"])
    print(f"\n## Cost: {what}\n")
    print_table(["variant", "minutes", "× labels"], lines)


def print_again(rows: Sequence[Row]) -> None:
    """What was trained again on another device, beside the rows that it repeats."""
    test = by_setting(rows, "test_top1")
    lines = [
        [f"`{name}`", shown(mean_of(test, name)), shown(gain(test, name, first), difference=True)]
        for name in test
        if (first := name.removeprefix(AGAIN)) != name
    ]
    if lines:
        print("\n## On another device\n")
        print_table(["setting", "test top-1, %", "over the first rows"], lines)


def print_start(rows: Sequence[Row]) -> None:
    """How much of the accuracy goes with when a training left its start, beside variant and seed.

    A seed that starts late does so in most variants: its mean is taken off too, as pairing does.
    """
    test, start = by_setting(rows, "test_top1"), by_setting(rows, "left_start")
    known = {name: test[name].keys() & start.get(name, {}).keys() for name in members(rows, "main")}
    most = max(map(len, known.values()), default=0)
    names = [name for name, seeds in known.items() if len(seeds) == most]
    seeds = sorted(set.intersection(*(set(known[name]) for name in names))) if names else []
    if len(names) < 2 or len(seeds) < 2:
        return
    values = np.array(
        [[[of[name][seed] for seed in seeds] for name in names] for of in (start, test)]
    )
    for axis in (1, 2):
        values -= values.mean(axis=axis, keepdims=True)
    epochs, accuracy = values.reshape(2, -1)
    slope = (epochs @ accuracy) / max(float(epochs @ epochs), 1e-9)
    together = np.corrcoef(epochs, accuracy)[0, 1]
    print(
        f"\nBeside variant and seed an epoch later away from the start goes with {points(slope)} "
        f"points (correlation {together:.2f}, {epochs.size} students of main)."
    )


def print_group(rows: Sequence[Row], group: str) -> None:
    """Every setting of a group, with its gain over the group's reference."""
    test, val, train, start = (
        by_setting(rows, name) for name in ("test_top1", "val_top1", "train_top1", "left_start")
    )
    lines = []
    for setting, row in members(rows, group).items():
        reference = reference_of(row, rows)
        over = None if setting == reference else gain(test, setting, reference)
        left = mean_of(start, setting)
        lines.append(
            [
                f"`{setting}`",
                len(test[setting]),
                shown(mean_of(test, setting)),
                f"{shown(over, difference=True)} over `{reference}`" if over else "–",
                shown(mean_of(val, setting)),
                shown(mean_of(train, setting)),
                f"{left.mean:.0f}" if left else "–",
            ]
        )
    print(f"\n## {group}\n")
    accuracies = [f"{name} top-1, %" for name in ("val", "train")]
    head = ["setting", "seeds", "test top-1, %", "gain", *accuracies, "left start in epoch"]
    print_table(head, lines)


def print_views(rows: Sequence[Row]) -> None:
    """What the method gains with each number of cached views, and what fresh ones would give."""
    test = by_setting(rows, "test_top1")
    lines = []
    for views, prefix in VIEWS.items():
        labels, method = f"{prefix}-labels", f"{prefix}-all"
        if method not in test:
            continue
        means = [shown(mean_of(test, name)) for name in (labels, method)]
        over = (
            None if against == method else gain(test, method, against)
            for against in (labels, "fresh-all")
        )
        lines.append([views, *means, *(shown(one, difference=True) for one in over)])
    print("\n## Views\n")
    head = ["views", "`labels`, %", "`all`, %", "gain", "`all` − fresh views"]
    print_table(head, lines)


def print_claims(test: Figures, val: Figures, fitted: Fit | None) -> None:
    """Claim by claim, and which stand when their number is taken into account.

    Differences are of the seeds that both settings have; the fit's of all, the noise pooled.
    """
    lines, waiting, measured = [], [], {}
    for claim in CLAIMS:
        difference = gain(test, claim.setting, claim.against)
        if difference is None:
            waiting.append(claim.words)
            continue
        seeds = len(difference.values)
        measured[claim.words] = difference
        of_val = shown(gain(val, claim.setting, claim.against), difference=True)
        pooled = None
        if fitted and {claim.setting, claim.against} <= {*fitted.settings}:
            pooled = fitted.difference(claim.setting, claim.against)
        found, of_fit = (shown(one, difference=True) for one in (difference, pooled))
        lines.append([claim.words, seeds, found, verdict(difference), of_fit, of_val])
    print("\n## Claims\n")
    head = ["claim", "seeds", "points of test top-1", "interval", "noise pooled", "points of val"]
    print_table(head, lines)
    left = [words for words, one in measured.items() if stands_adjusted(one, len(CLAIMS))]
    print(
        f"\nOther than 0 when adjusted for all {len(CLAIMS)} claims: {'; '.join(left) or 'none'}."
    )
    if waiting:
        print(f"\nWithout rows so far: {'; '.join(waiting)}.")


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


def print_knobs(rows: Sequence[Row], fitted: Fit) -> None:
    """What each knob does, beside its default, with the noise of all students."""
    seeds = by_setting(rows, "test_top1")
    lines = []
    for name, row, default in knobs(rows, fitted):
        changed = row["changes"].strip("{}") or "8-bit fields"
        found = fitted.difference(name, default)
        levels = [f"{100 * fitted.effect(one):.1f}" for one in (name, default)]
        difference = shown(found, difference=True)
        cells = [f"`{changed}`", f"`{row['variant']}`", len(seeds[name]), *levels]
        lines.append([*cells, difference, verdict(found)])
    if not lines:
        return
    noise = f"{100 * fitted.noise:.1f} points ({fitted.degrees} degrees of freedom)"
    print(f"\n## Knobs\n\n{len(fitted.settings)} settings, fitted together; noise: {noise}.\n")
    head = ["change", "variant", "seeds", "test top-1, %", "default, %", "difference", "interval"]
    print_table(head, lines)


def group_spreads(rows: Sequence[Row], group: str) -> list[Spread]:
    """The gains of each setting of a group, paired by seed."""
    test = by_setting(rows, "test_top1")
    spreads = []
    for name, row in members(rows, group).items():
        reference = reference_of(row, rows)
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


def main() -> None:
    """Print the tables, write the plots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="figures_hard")
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    options = parser.parse_args()
    named = {
        name: options.results / f"{options.dataset}{name}.csv"
        for name in ("", "_again", "_short", "_teachers")
    }
    rows = with_again(read_rows(named[""]), named["_again"])
    if not rows:
        parser.error(f"{named['']} has no row: `python benchmarks/evidence.py run` writes them")
    groups = list(dict.fromkeys(row["group"] for row in rows))
    test, val = by_setting(rows, "test_top1"), by_setting(rows, "val_top1")
    fitted = fit(alike(rows))
    print_claims(with_teachers(test, named["_teachers"]), val, fitted)
    print_views(rows)
    print_again(rows)
    if named["_short"].is_file():
        print_cost(read_rows(named["_short"]), "the first recipe, one core of a CPU")
    devices = {row.get("device") for row in rows if row["setting"] == "main-labels"}
    for device in devices:
        print_cost([row for row in rows if row.get("device") == device], f"{device}")
    print_start(rows)
    spreads = {group: group_spreads(rows, group) for group in groups if group not in KNOBS}
    if fitted is not None:
        print_knobs(rows, fitted)
        spreads["knobs"] = knob_spreads(rows, fitted)
    for group in groups:
        print_group(rows, group)
    for name, of_name in spreads.items():
        if of_name:
            drawn = draw(of_name, name)
            write_text(options.results / f"{options.dataset}-{name}.svg", drawn)


if __name__ == "__main__":
    main()
