"""Tables and plots of the evidence, from its CSV files and nothing else.

python benchmarks/evidence_tables.py  # prints the tables; fills docs/results*.md, draws the plots

A document has a place for a table between `<!-- table DATASET NAME -->` and `<!-- end -->`; the
plots that it names are drawn.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evidence import read_rows
from evidence_claims import AGAIN, CLAIMS
from evidence_figures import (
    KNOBS,
    STRONGER,
    Figures,
    Row,
    alike,
    by_setting,
    gain,
    knobs,
    mean_of,
    members,
    reference_of,
    shown,
    stands_adjusted,
    verdict,
    with_again,
    with_teachers,
)
from evidence_fit import Fit, fit
from evidence_plots import draw, group_spreads, knob_spreads
from evidence_settings import FOUR
from making import table_text
from stages.files import write_text
from stages.intervals import estimate
from stages.wording import points

VIEWS = {1: "views-1", 2: "views-2", 4: "main", 8: "views-8", 20: "views-20", 60: "fresh"}
PARTS = ("labels", "kd_vit", "kd_cnn", "uniform", "datw", "datw_sdd", "datw_rkd", "all")
"""Variants that are the method or a part of it."""
WITH_8 = {
    STRONGER["main"]: "`all`, λ_sdd 8",
    "stronger-uniform-datw_sdd": "`uniform` and SDD, λ_sdd 8",
    "stronger-vit_alone-datw_sdd": "the ViT alone, λ_sdd 8",
}
"""The best ones, in the words of a line."""
PLACES = {"twice the epochs": "longer", "half the videos": "size", "`x3d_tiny`": "student"}
"""What is measured elsewhere too: the words of a column, the group of its settings."""
_PLACE = r"(<!-- table {} (\S+) -->\n)(?:(?!<!-- table).)*?(<!-- end -->)"


def variants_table(rows: Sequence[Row], timed: Sequence[Row]) -> str:
    """The method and its parts, beside labels only and plain KD, and what their training takes.

    Args:
        rows: all.
        timed: those whose minutes tell the time; may be none.
    """
    test, times = by_setting(rows, "test_top1"), shares_of_labels(timed)
    if "main-all" in times:  # another λ takes no other time
        times[STRONGER["main"]] = times["main-all"]
    chosen = {
        name: f"`{row['variant']}`"
        for name, row in members(rows, "main").items()
        if row["variant"] in PARTS
    }
    chosen |= {name: words for name, words in WITH_8.items() if name in test}
    lines = []
    for setting, shown_as in chosen.items():
        over = (
            None if setting == reference else gain(test, setting, reference)
            for reference in ("main-labels", "main-uniform")
        )
        gains = [shown(one, difference=True) for one in over]
        lines.append([shown_as, shown(mean_of(test, setting)), *gains, times.get(setting, "–")])
    head = ["variant", "test top-1, %", "over `labels`", "over `uniform`", "training time"]
    return table_text(head, lines)


def places_table(rows: Sequence[Row]) -> str:
    """The main variants elsewhere, with their gains over labels only there."""
    test = by_setting(rows, "test_top1")
    settings = {
        f"`{name}`": {group: f"{group}-{name}" for group in PLACES.values()} for name in FOUR
    }
    lines = []
    for words, of_group in {**settings, "`all`, λ_sdd 8": STRONGER}.items():
        cells = []
        for group in PLACES.values():
            setting, labels = of_group[group], f"{group}-labels"
            over = None if setting == labels else gain(test, setting, labels)
            mean = shown(mean_of(test, setting))
            cells.append(f"{mean} ({shown(over, difference=True)})" if over else mean)
        lines.append([words, *cells])
    return table_text(["variant", *(f"{place}, %" for place in PLACES)], lines)


def shares_of_labels(rows: Sequence[Row]) -> dict[str, str]:
    """Setting of `main` → the mean time of its trainings, in that of labels only."""
    minutes = by_setting(rows, "minutes")
    labels = mean_of(minutes, "main-labels")
    means = {name: mean_of(minutes, name) for name in members(rows, "main")}
    return {
        name: f"{mean.mean / labels.mean:.2f}" for name, mean in means.items() if mean and labels
    }


def cost_table(rows: Sequence[Row], *, accuracy: bool = False) -> str:
    """What each variant's training takes, of one device's rows; with it what it reaches."""
    minutes, test = by_setting(rows, "minutes"), by_setting(rows, "test_top1")
    shares = shares_of_labels(rows)
    lines = []
    for name, row in members(rows, "main").items():
        mean = estimate(list(minutes[name].values())).mean
        reached = [shown(mean_of(test, name))] if accuracy else []
        lines.append([f"`{row['variant']}`", f"{mean:.2f}", shares[name], *reached])
    head = ["variant", "minutes", "× labels", *(["test top-1, %"] if accuracy else [])]
    return table_text(head, lines)


def again_table(rows: Sequence[Row]) -> str:
    """What was trained again on another device, beside the rows that it repeats.

    A row that stands among both repeats none.
    """
    test, device = by_setting(rows, "test_top1"), by_setting(rows, "device")
    lines = []
    for name in test:
        first = name.removeprefix(AGAIN)
        if first == name:
            continue
        repeated = {
            seed: value
            for seed, value in test[name].items()
            if device[first].get(seed) != device[name][seed]
        }
        over = gain({**test, name: repeated}, name, first)
        shown_as = [shown(mean_of(test, name)), shown(over, difference=True)]
        lines.append([f"`{name}`", *shown_as, len(repeated)])
    return table_text(["setting", "test top-1, %", "over the first rows", "seeds"], lines)


def budget_table(rows: Sequence[Row]) -> str:
    """The students of each device, and how long these trained, all together."""
    students = {
        (row["setting"].removeprefix(AGAIN), row["seed"], str(row.get("device"))): row["minutes"]
        for row in rows
    }
    lines = []
    for device in dict.fromkeys(name for _, _, name in students):
        minutes = [one for (_, _, name), one in students.items() if name == device]
        lines.append([device, len(minutes), f"{sum(minutes) / 60:.1f}"])
    return table_text(["device", "students", "hours"], lines)


def start_text(rows: Sequence[Row]) -> str | None:
    """How much of the accuracy goes with when a training left its start, beside variant and seed.

    A seed that starts late does so in most variants: its mean is taken off too, as pairing does.
    """
    test, start = by_setting(rows, "test_top1"), by_setting(rows, "left_start")
    known = {name: test[name].keys() & start.get(name, {}).keys() for name in members(rows, "main")}
    most = max(map(len, known.values()), default=0)
    names = [name for name, seeds in known.items() if len(seeds) == most]
    seeds = sorted(set.intersection(*(set(known[name]) for name in names))) if names else []
    if len(names) < 2 or len(seeds) < 2:
        return None
    values = np.array(
        [[[of[name][seed] for seed in seeds] for name in names] for of in (start, test)]
    )
    for axis in (1, 2):
        values -= values.mean(axis=axis, keepdims=True)
    epochs, accuracy = values.reshape(2, -1)
    slope = (epochs @ accuracy) / max(float(epochs @ epochs), 1e-9)
    together = np.corrcoef(epochs, accuracy)[0, 1]
    return (
        f"Beside variant and seed an epoch later away from the start goes with {points(slope)} "
        f"points (correlation {together:.2f}, {epochs.size} students of main)."
    )


def group_table(rows: Sequence[Row], group: str) -> str:
    """Every setting of a group, with its gain over the group's reference."""
    test, val, train, start = (
        by_setting(rows, name) for name in ("test_top1", "val_top1", "train_top1", "left_start")
    )
    lines = []
    for setting, row in members(rows, group).items():
        reference = reference_of(row)
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
    accuracies = [f"{name} top-1, %" for name in ("val", "train")]
    head = ["setting", "seeds", "test top-1, %", "gain", *accuracies, "left start in epoch"]
    return table_text(head, lines)


def views_table(rows: Sequence[Row]) -> str:
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
            for against in (labels, "fresh-all", "online-all")
        )
        lines.append([views, *means, *(shown(one, difference=True) for one in over)])
    head = [
        "views of each video",
        "`labels`, %",
        "`all`, %",
        "gain",
        "`all` − 60 views",
        "`all` − online",
    ]
    return table_text(head, lines)


def claims_text(test: Figures, val: Figures, fitted: Fit | None) -> str:
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
    head = ["claim", "seeds", "points of test top-1", "interval", "noise pooled", "points of val"]
    left = [words for words, one in measured.items() if stands_adjusted(one, len(CLAIMS))]
    parts = [
        table_text(head, lines),
        f"Other than 0 when adjusted for all {len(CLAIMS)} claims: {'; '.join(left) or 'none'}.",
    ]
    if waiting:
        parts.append(f"Without rows so far: {'; '.join(waiting)}.")
    return "\n\n".join(parts)


def knobs_text(rows: Sequence[Row], fitted: Fit) -> str:
    """What each knob does, beside its default, with the noise of all students."""
    test = by_setting(rows, "test_top1")
    lines = []
    for name, row, default in knobs(rows, fitted):
        changed = row["changes"].strip("{}") or "8-bit fields"
        found = fitted.difference(name, default)
        levels = [f"{100 * fitted.effect(one):.1f}" for one in (name, default)]
        pooled, paired = (shown(one, difference=True) for one in (found, gain(test, name, default)))
        cells = [f"`{changed}`", f"`{row['variant']}`", len(test[name]), *levels]
        lines.append([*cells, pooled, verdict(found), paired])
    noise = f"{100 * fitted.noise:.1f} points ({fitted.degrees} degrees of freedom)"
    settings = ["change", "variant", "seeds", "test top-1, %", "default, %"]
    head = [*settings, "difference", "interval", "paired by seed"]
    return (
        f"{len(fitted.settings)} settings, fitted together; noise: {noise}.\n\n"
        f"{table_text(head, lines)}"
    )


def fill(path: Path, dataset: str, tables: Mapping[str, str]) -> None:
    """Put a dataset's tables where a document has places for them.

    Raises:
        ValueError: there is no table of a place's name.
    """
    text = path.read_text(encoding="utf-8")
    place = re.compile(_PLACE.format(re.escape(dataset)), re.DOTALL)
    names = [name for _, name, _ in place.findall(text)]
    if len(names) != text.count(f"<!-- table {dataset} "):
        raise ValueError(f"{path}: a table's place has no `<!-- end -->`")
    unknown = [name for name in names if name not in tables]
    if unknown:
        raise ValueError(f"{path}: no table {', '.join(unknown)}; there are {', '.join(tables)}")
    write_text(path, place.sub(lambda found: f"{found[1]}{tables[found[2]]}\n{found[3]}", text))


def main() -> None:
    """Print the tables, fill the documents, write the plots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="figures_hard", help="whose rows: DATASET.csv")
    parser.add_argument(
        "--results", type=Path, default=Path("docs/results"), help="the folder that has them"
    )
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
    short = read_rows(named["_short"])
    tables = {
        "claims": claims_text(with_teachers(test, named["_teachers"]), val, fitted),
        "variants": variants_table(rows, short),
        "places": places_table(rows),
        "number-of-views": views_table(rows),
        "budget": budget_table(rows),
    }
    if named["_again"].is_file():
        tables["again"] = again_table(rows)
    if short:
        tables["20-epochs"] = cost_table(short, accuracy=True)
    labels = [str(row.get("device")) for row in rows if row["setting"] == "main-labels"]
    for device in dict.fromkeys(labels):
        of_device = [row for row in rows if str(row.get("device")) == device]
        name = "-".join(re.findall(r"\w+", device))
        tables[f"cost-{name}"] = cost_table(of_device)
    start = start_text(rows)
    if start is not None:
        tables["start"] = start
    spreads = {group: group_spreads(rows, group) for group in groups if group not in KNOBS}
    if fitted is not None and knobs(rows, fitted):
        tables["knobs"] = knobs_text(rows, fitted)
        spreads["knobs"] = knob_spreads(rows, fitted)
    tables |= {group: group_table(rows, group) for group in groups}
    for name, text in tables.items():
        print(f"\n## {name}\n\n{text}")
    places = (options.results / "README.md", options.results.with_suffix(".md"))
    documents = [one for one in places if one.is_file()]
    for document in documents:
        fill(document, options.dataset, tables)
    texts = [document.read_text(encoding="utf-8") for document in documents]
    for name, of_name in spreads.items():
        plot = options.results / f"{options.dataset}-{name}.svg"
        if of_name and any(plot.name in text for text in texts):
            write_text(plot, draw(of_name, name))


if __name__ == "__main__":
    main()
