"""What `dualkd evaluate` prints: a table of the networks, the gain, classes and confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from stages.progress import console
from stages.wording import count, plural, points

_SHOWN = 3  # classes, and confusions, of each kind
_DASH = "–"
Figures = Mapping[str, Any]


def show(
    metrics: Figures,
    roles: Sequence[str],
    by_class: Sequence[Figures],
    confusions: Sequence[Figures],
) -> None:
    """Print everything, for people; 80 columns are enough.

    Args:
        metrics: what `metrics.json` holds.
        roles: its networks, in the order of the table.
        by_class: the rows of `by_class.csv`.
        confusions: those of `confusions.csv`.
    """
    console.print(_table(metrics, roles))
    level = f"{100 * metrics['bootstrap']['level']:.0f} %"
    console.print(
        f"Below each share: {level} intervals, by bootstrap over "
        f"{plural(metrics['bootstrap']['videos'], 'video')}. ECE: calibration error in points, as "
        "it is and with a temperature. ViT, CNN: same answer as that teacher."
    )
    if broken := {role: n for role in roles if (n := metrics[role]["non_finite"])}:
        which = ", ".join(f"{role} {count(number)}" for role, number in broken.items())
        console.print(f"Outputs that are not finite score nothing, videos: {which}")
    for line in _gains(metrics):
        console.print(line)
    for line in (*_classes(by_class), *_confusions(confusions)):
        console.print(line)


def _table(metrics: Figures, roles: Sequence[str]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("in %", overflow="fold")
    for heading in ("top-1", "top-5", "mean class", "ECE", "scaled", "ViT", "CNN"):
        table.add_column(heading, justify="right", no_wrap=True)
    for role in roles:
        table.add_row(role, *_cells(metrics[role]))
        for head, figures in metrics[role].get("heads", {}).items():
            table.add_row(f" {head}", *_cells(figures))
        for name, of_subset in metrics[role].get("subsets", {}).items():
            if of_subset["videos"]:
                table.add_row(f" {name}", *_cells(of_subset))
            for head, figures in of_subset.get("heads", {}).items():
                table.add_row(f"  {head}", *_cells(figures))
    return table


def _cells(figures: Figures) -> list[str]:
    return [
        _with_interval(figures["top1"], figures["top1_interval"]),
        _with_interval(figures["top5"], figures["top5_interval"]),
        _with_interval(figures["mean_class_accuracy"], figures["mean_class_interval"]),
        *(
            "" if name not in figures else _share(figures[name])
            for name in ("ece", "ece_calibrated", "agreement_vit", "agreement_cnn")
        ),
    ]


def _with_interval(share: float, interval: Sequence[float] | None) -> str:
    """Two lines: the share, and below it the interval."""
    return _share(share) + (f"\n{_share(interval[0])}–{_share(interval[1])}" if interval else "")


def _share(share: float | None) -> str:
    return _DASH if share is None else f"{100 * share:.1f}"


def _gains(metrics: Figures) -> list[str]:
    """The student over the baseline: in all, by head, and of the subsets."""
    gains = {"": metrics} | {
        f", {name}": figures
        for kind in ("heads", "subsets")
        for name, figures in metrics["student"].get(kind, {}).items()
        if "gain_top1" in figures
    }
    lines = []
    for name, figures in gains.items():
        interval = figures["gain_top1_interval"]
        span = f" ({points(interval[0])} to {points(interval[1])})" if interval else ""
        lines.append(
            f"Gain of the student over the baseline{name}: {points(figures['gain_top1'])} points"
            f"{span}"
        )
    return lines


def _classes(by_class: Sequence[Figures]) -> list[str]:
    """How many classes gained and lost, and which most."""
    scored = [row for row in by_class if row["gain"] is not None]
    ordered = sorted(scored, key=lambda row: -row["gain"])
    gained = [row for row in ordered if row["gain"] > 0]
    lost = [row for row in reversed(ordered) if row["gain"] < 0]
    if not gained and not lost:
        return [f"Not one of {plural(len(scored), 'class', 'classes')} gained or lost"]
    lines = [
        f"Of {plural(len(scored), 'class', 'classes')} {count(len(gained))} gained, "
        f"{count(len(lost))} lost"
    ]
    for what, rows in (("gained", gained), ("lost", lost)):
        if rows:
            most = ", ".join(
                f"{_name(row, 'class')} {points(row['gain'])}" for row in rows[:_SHOWN]
            )
            lines.append(f"  {what} most: {most}")
    return lines


def _confusions(confusions: Sequence[Figures]) -> list[str]:
    """Which mistakes there are less of, and which more."""
    removed = [row for row in confusions if row["removed"] > 0]
    added = [row for row in reversed(confusions) if row["removed"] < 0]
    lines = []
    for what, rows in (("removed", removed), ("added", added)):
        if rows:
            lines.append(f"Confusions {what}, videos of the baseline → of the student:")
            lines += [
                f"  {_name(row, 'actual')} answered {row['predicted']}: {count(row['baseline'])} → "
                f"{count(row['student'])}"
                for row in rows[:_SHOWN]
            ]
    return lines


def _name(row: Figures, column: str) -> str:
    """A class, with several heads as `verb: take`."""
    return f"{row['head']}: {row[column]}" if "head" in row else str(row[column])
