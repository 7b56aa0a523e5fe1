"""The table of `dualkd ablate`: means over seeds, gains seed by seed; printed, and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich import box
from rich.table import Table

from pipeline.config import Run
from stages.ablation_results import Student
from stages.charts import Spread, dot_chart
from stages.files import write_csv, write_json, write_text
from stages.intervals import SHARE, estimate
from stages.progress import PlainConsole
from stages.variants import FROM_OUTSIDE, NAMES, REFERENCES
from stages.wording import count, percent, points

Row = Mapping[str, Any]
CHART_STYLE = """
svg { --page: #ffffff; --ink: #1a2026; --muted: #56616c; --rule: #e2e5e8;
      --method: #00776b; --outside: #b3540a; --labels: #77818c; }
@media (prefers-color-scheme: dark) {
  svg { --page: #121517; --ink: #e7eaed; --muted: #a5afb9; --rule: #31383f;
        --method: #45bfb0; --outside: #eb9a58; --labels: #8d98a3; } }
text { font: 12px system-ui, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
       fill: var(--ink); }
.tick { fill: var(--muted); } .end { text-anchor: end; } .middle { text-anchor: middle; }
.page { fill: var(--page); } .rule { stroke: var(--rule); }
.mark { stroke: var(--muted); stroke-dasharray: 2 3; }
.method { color: var(--method); } .outside { color: var(--outside); }
.labels { color: var(--labels); }
.range { stroke: currentColor; stroke-width: 2.5; stroke-linecap: round; }
.mean { fill: currentColor; stroke: var(--page); stroke-width: 1; }
.dot { fill: currentColor; fill-opacity: 0.35; }
"""


def summary(
    run: Run,
    students: Sequence[Student],
    of: Mapping[str, Any],
    seeds: int,
    failed: Mapping[str, str],
) -> dict[str, Any]:
    """The table as plain JSON; shares are of 1, intervals are Student's t over seeds.

    Args:
        run: the config.
        students: all of them scored on the same samples, each variant and seed once.
        of: what they were scored on.
        seeds: how many were asked for.
        failed: why others could not be made, by name.
    """
    asked = range(run.distill.seed, run.distill.seed + seeds)
    figures: dict[str, dict[str, dict[int, float]]] = {}
    for student in students:
        for figure in ("top1", "top5"):
            of_figure = figures.setdefault(figure, {}).setdefault(student.variant.name, {})
            of_figure[student.seed] = student.result["score"][figure]
    about = {student.variant.name: student.variant for student in students}
    rows = []
    for name in (name for name in NAMES if name in about):
        top1 = figures["top1"][name]
        row = {
            "variant": name,
            "loss": about[name].loss,
            "weighting": about[name].weighting,
            "weights": about[name].weights.model_dump(),
            "seeds": sorted(top1),
            "top1": _estimate(list(top1.values())),
            "top5": _estimate(list(figures["top5"][name].values())),
        }
        for reference in REFERENCES:
            there = figures["top1"].get(reference, {})
            gains = [value - there[seed] for seed, value in top1.items() if seed in there]
            row[f"over_{reference}"] = _estimate(gains) if name != reference else None
        rows.append(row)
    return {
        "run": run.name,
        "split": of["split"],
        "videos": min((student.result["score"]["videos"] for student in students), default=0),
        "view": "centre",
        "share_of_interval": SHARE,
        "seeds": list(asked),
        "variants": rows,
        "notes": list(_notes(run, rows, len(asked))),
        "failed": [{"student": name, "reason": reason} for name, reason in failed.items()],
    }


def _estimate(values: Sequence[float]) -> dict[str, Any] | None:
    """A mean as JSON; None where there is nothing."""
    if not values:
        return None
    found = estimate(values)
    low, high = found.interval or (None, None)
    return {"mean": found.mean, "low": low, "high": high, "values": list(found.values)}


def _notes(run: Run, rows: Sequence[Row], seeds: int) -> list[str]:
    """What a reader of the table must know."""
    there = {row["variant"]: row["seeds"] for row in rows}
    notes = []
    if seeds == 1:
        notes.append("one seed: there are no intervals; --seeds 5 trains four more")
    for reference in REFERENCES:
        if reference not in there:
            notes.append(
                f"no {reference}: what is gained over it is not known; `dualkd ablate --dataset "
                f"{run.name} --seeds {seeds} --only {reference}` trains it"
            )
    if missing := [name for name in NAMES if name not in there and name not in REFERENCES]:
        notes.append(f"not there yet: {', '.join(missing)}")
    if short := [name for name, of_name in there.items() if len(of_name) < seeds]:
        notes.append(
            f"of fewer than {seeds} seeds: {', '.join(short)}; a gain is over the seeds that "
            "both have"
        )
    return notes


def write_all(out: Path, facts: Mapping[str, Any]) -> None:
    """Write ablate.json, .csv, .md and, where there is anything to draw, .svg."""
    write_json(out / "ablate.json", facts)
    rows: Sequence[Row] = facts["variants"]
    if not rows:
        return
    write_csv(out / "ablate.csv", pa.Table.from_pylist([_flat(row) for row in rows]))
    write_text(out / "ablate.md", _markdown(facts))
    write_text(out / "ablate.svg", _chart(facts))


def _flat(row: Row) -> dict[str, Any]:
    """A row of the CSV; empty where there is nothing."""
    flat = {"variant": row["variant"], "loss": row["loss"], "seeds": len(row["seeds"])}
    for figure in ("top1", *(f"over_{reference}" for reference in REFERENCES), "top5"):
        one = row[figure] or {}
        flat |= {f"{figure}_{part}": one.get(part) for part in ("mean", "low", "high")}
    return flat


def _cells(row: Row) -> list[str]:
    """The figures of a row for people: percent, and points; ± is half the interval."""
    top1, top5 = row["top1"], row["top5"]
    cells = [str(len(row["seeds"])), f"{100 * top1['mean']:.1f}{_half(top1)}"]
    for reference in REFERENCES:
        gain = row[f"over_{reference}"]
        cells.append(f"{points(gain['mean'])}{_half(gain)}" if gain else "–")
    return [*cells, f"{100 * top5['mean']:.1f}"]


def _half(one: Row) -> str:
    return "" if one["low"] is None else f" ± {50 * (one['high'] - one['low']):.1f}"


_HEADINGS = ("seeds", "top-1, %", "over labels", "over uniform", "top-5, %")


def _caption(facts: Mapping[str, Any]) -> str:
    return (
        f"{count(facts['videos'])} videos of {facts['split']}, the view in the centre. Means over "
        "seeds ± half of their 95 % interval (Student's t); gains are points of top-1, seed by "
        "seed; one that is smaller than its ± may as well be none."
    )


def _markdown(facts: Mapping[str, Any]) -> str:
    lines = [f"# Ablation of {facts['run']}", "", _caption(facts), ""]
    lines += [f"| variant | loss | {' | '.join(_HEADINGS)} |", "| --- | --- |" + " ---: |" * 5]
    for row in facts["variants"]:
        lines.append(f"| `{row['variant']}` | {row['loss']} | {' | '.join(_cells(row))} |")
    if facts["notes"]:
        lines += ["", *(f"- {note}" for note in facts["notes"])]
    return "\n".join([*lines, "", "![top-1 by variant](ablate.svg)", ""])


def show(facts: Mapping[str, Any]) -> None:
    """Print the table for people, and what the losses are."""
    console = PlainConsole()
    rows: Sequence[Row] = facts["variants"]
    if rows:
        table = _table("variant", *_HEADINGS)
        for row in rows:
            table.add_row(row["variant"], *_cells(row))
        losses = _table("variant")
        losses.add_column("loss")
        for row in rows:
            losses.add_row(row["variant"], row["loss"])
        console.print(table)
        console.print(_caption(facts), "", sep="\n")
        console.print(losses)
    for note in facts["notes"]:
        console.print(f"- {note}")


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _chart(facts: Mapping[str, Any]) -> str:
    """One row for each variant: its seeds, its mean, its interval."""
    spreads, mark = [], None
    for row in facts["variants"]:
        name, top1 = row["variant"], row["top1"]
        kind = "labels" if name == "labels" else "outside" if name in FROM_OUTSIDE else "method"
        if name == "labels":
            mark = top1["mean"]
        spreads.append(
            Spread(
                name,
                kind,
                [
                    (f"{name}, seed {seed}", value)
                    for seed, value in zip(row["seeds"], top1["values"], strict=True)
                ],
                top1["mean"],
                # Of few seeds it may reach beyond what an accuracy can be.
                None if top1["low"] is None else (max(top1["low"], 0), min(top1["high"], 1)),
            )
        )
    legend = "Dot: a seed; diamond: the mean"
    if any(spread.interval for spread in spreads):
        legend += "; bar: its 95 % interval"
    if mark is not None:
        legend += "; dashes: the mean of labels"
    drawn = dot_chart(
        f"Top-1 of {len(spreads)} variants on {facts['split']}",
        spreads,
        x_name=f"top-1 on {facts['split']}. {legend}",
        mark=mark,
        show=lambda share: percent(share, 0),
        style=CHART_STYLE,
    )
    return f"{drawn}\n"
