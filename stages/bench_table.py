"""The table of `dualkd bench-student`: how many times as fast as the ViT teacher, first of all."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from stages.progress import PlainConsole

_WIDTH = 100  # columns where no terminal says how many there are


def show(facts: Mapping[str, Any]) -> None:
    """Print what `stages.bench_student.bench` found, for people."""
    out = PlainConsole(**({} if sys.stdout.isatty() else {"width": _WIDTH}))
    networks = facts["networks"]
    student, teacher = networks["student"]["model"], networks[facts["reference"]]["model"]
    out.print(f"{student} beside {teacher}, each run in the same way, one clip at a time:")
    for row in facts["rows"]:
        if row["role"] == "student" and row["latency"]["ratio"] is not None:
            out.print(f"{row['latency']['ratio']:6.1f}× as fast by {row['way']}, {_on(row)}")
    if facts["random_weights"]:
        out.print("Weights are random: these figures are of speed, and say nothing of answers.")
    out.print(_table(facts))
    machine, load = facts["machine"], facts["load"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    out.print(
        f"×: how many times as fast as {teacher} in the same way. Medians of {facts['turns']} "
        "turns (least to greatest); all take part in each. "
        f"{machine['processor']}, {machine['cores']} cores, {machine['gpu'] or 'no GPU'}, "
        f"{packages}, load {load[0]} before and {load[1]} after."
    )
    for what, reason in facts["left_out"].items():
        out.print(f"left out: {what}: {reason}")


def _table(facts: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in ("×", "ms of one clip", "×", f"clips/s, {facts['batch']} at once"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("network", "by", "on"):
        table.add_column(heading, overflow="fold")
    order = {role: place for place, role in enumerate(facts["networks"])}
    rows = sorted(facts["rows"], key=lambda row: (row["cores"], row["way"], order[row["role"]]))
    for place, row in enumerate(rows):
        last = place + 1 == len(rows) or rows[place + 1]["cores"] != row["cores"]
        table.add_row(
            *_cells(row["latency"]),
            *_cells(row["throughput"]),
            facts["networks"][row["role"]]["model"].partition("/")[2],
            row["way"],
            _on(row),
            end_section=last,
        )
    return table


def _cells(figures: Mapping[str, float | None]) -> tuple[str, str]:
    ratio = figures["ratio"]
    median, least, greatest = (_short(figures[name]) for name in ("median", "least", "greatest"))
    return "–" if ratio is None else f"{ratio:.1f}", f"{median} ({least}–{greatest})"


def _short(value: float | None) -> str:
    """Three digits that count; whole numbers from 100 on."""
    number = value or 0.0
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _on(row: Mapping[str, Any]) -> str:
    cores = row["cores"]
    return f"{cores} core{'s' if cores > 1 else ''}" if cores else "GPU"
