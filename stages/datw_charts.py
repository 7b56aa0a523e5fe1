"""How DATW weighed the teachers: by class and epoch, and by how sure each of them was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from pipeline.totals import CONFIDENCE_BINS
from stages.charts import Cell, Line, grid_chart, line_chart
from stages.wording import count, percent, plural, short_percent

_MOST_ROWS, _MOST_COLUMNS = 30, 40  # of the weights by class
_SAME = 1e-6  # rounding of the bins' ends


@dataclass(frozen=True)
class ClassWeights:
    """DATW's weights by class.

    Attributes:
        chart: a row per class, a column per epoch.
        reach: the fullest colour stands for one half ± this.
        most: the class with the ViT's highest weight in the last epoch, and that weight.
        least: the class with the lowest.
        hidden: classes and epochs that are left out, in words; empty where there are none.
    """

    chart: Markup
    reach: float
    most: tuple[str, float]
    least: tuple[str, float]
    hidden: str


def class_weights(rows: Sequence[Mapping[str, Any]]) -> ClassWeights | None:
    """From the rows of `datw.csv` (epoch, class, vit_weight); None where DATW was off.

    A weight is None where no clip of the class was seen in an epoch.
    """
    table: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["vit_weight"] is not None:
            table.setdefault(row["class"], {})[row["epoch"]] = row["vit_weight"]
    if not table:
        return None
    epochs = sorted({epoch for of_class in table.values() for epoch in of_class})
    last = {name: of_class[max(of_class)] for name, of_class in table.items()}
    names = sorted(last, key=lambda name: -last[name])
    shown = names
    if len(names) > _MOST_ROWS:
        shown = names[: _MOST_ROWS // 2] + names[-_MOST_ROWS // 2 :]
    columns = epochs[:: -(-len(epochs) // _MOST_COLUMNS)]
    reach = max(abs(table[name][e] - 0.5) for name in shown for e in columns if e in table[name])
    cells = [
        [_cell(f"{name}, epoch {e + 1}", table[name].get(e), reach) for e in columns]
        for name in shown
    ]
    hidden = []
    if len(shown) < len(names):
        hidden.append(f"the {len(names) - len(shown)} classes between the extremes")
    if len(columns) < len(epochs):
        hidden.append(f"{len(epochs) - len(columns)} of {len(epochs)} epochs")
    chart = grid_chart(
        f"Weight of the ViT by class and epoch; at the end highest for {names[0]}, "
        f"{percent(last[names[0]])}, lowest for {names[-1]}, {percent(last[names[-1]])}",
        shown,
        [str(epoch + 1) for epoch in columns],
        cells,
        cell_height=15,
        ends=[percent(last[name]) for name in shown],
    )
    ends = [(name, last[name]) for name in (names[0], names[-1])]
    return ClassWeights(chart, reach, ends[0], ends[1], " and ".join(hidden))


@dataclass(frozen=True)
class ConfidenceWeights:
    """DATW's weights by the teachers' confidence.

    Attributes:
        chart: the last epoch; a row per fifth of the ViT's confidence, a column per the CNN's.
        reach: the fullest colour stands for one half ± this.
        lines: by epoch, for the clips where one is surer than the other.
        clips: of an epoch, by which of the two is surer, in words.
    """

    chart: Markup
    reach: float
    lines: Markup
    clips: str


def confidence_weights(rows: Sequence[Mapping[str, Any]]) -> ConfidenceWeights | None:
    """From the rows of `datw_confidence.csv`; None where DATW was off."""
    if not rows:
        return None
    last = max(row["epoch"] for row in rows)
    at_end = {
        (row["vit_confidence"], row["cnn_confidence"]): row for row in rows if row["epoch"] == last
    }
    reach = max(abs(row["vit_weight"] - 0.5) for row in at_end.values())
    lows = [place / CONFIDENCE_BINS for place in range(CONFIDENCE_BINS)]
    cells = [
        [_confidence_cell(at_end.get((of_vit, of_cnn)), reach) for of_cnn in lows]
        for of_vit in reversed(lows)
    ]
    names = [f"{percent(low, 0)} to {percent(low + 1 / CONFIDENCE_BINS, 0)}" for low in lows]
    ends = [f"{100 * low:.0f}–{100 * low + 100 / CONFIDENCE_BINS:.0f}" for low in lows]
    label = (
        "Weight of the ViT in the last epoch; a row per confidence of the ViT, a column per CNN’s"
    )
    chart = grid_chart(label, names[::-1], ends, cells, cell_height=30)
    lines, clips = _by_surer(rows, last)
    return ConfidenceWeights(chart, reach, lines, clips)


def _by_surer(rows: Sequence[Mapping[str, Any]], last: int) -> tuple[Markup, str]:
    """A line per who is surer, by a bin at least; and the clips of each in the last epoch."""
    sums: dict[str, dict[int, list[float]]] = {"ViT surer": {}, "alike": {}, "CNN surer": {}}
    for row in rows:
        lead = row["vit_confidence"] - row["cnn_confidence"]
        name = "ViT surer" if lead > _SAME else "CNN surer" if lead < -_SAME else "alike"
        total = sums[name].setdefault(row["epoch"], [0.0, 0.0])
        total[0] += row["vit_weight"] * row["clips"]
        total[1] += row["clips"]
    kinds = {"ViT surer": "vit", "alike": "baseline", "CNN surer": "cnn"}
    lines = [
        Line(name, kinds[name], [(e + 1.0, of_vit / n) for e, (of_vit, n) in sorted(found.items())])
        for name, found in sums.items()
        if found
    ]
    told = [f"{name} {count(found.get(last, [0, 0])[1])}" for name, found in sums.items()]
    label = "Weight of the ViT by epoch and by which teacher is surer"
    chart = line_chart(
        label, lines, x_name="epoch", low=0.0, high=1.0, mark=0.5, show=short_percent
    )
    return chart, ", ".join(told)


def _confidence_cell(row: Mapping[str, Any] | None, reach: float) -> Cell | None:
    if row is None:
        return None
    low_vit, low_cnn = row["vit_confidence"], row["cnn_confidence"]
    where = (
        f"ViT’s confidence from {percent(low_vit, 0)}, CNN’s from {percent(low_cnn, 0)}, "
        f"{plural(row['clips'], 'clip')}"
    )
    cell = _cell(where, row["vit_weight"], reach)
    return None if cell is None else replace(cell, text=f"{100 * row['vit_weight']:.0f}")


def _cell(where: str, weight: float | None, reach: float) -> Cell | None:
    if weight is None:
        return None
    lean = weight - 0.5
    title = f"{where}: ViT {percent(weight)}, CNN {percent(1 - weight)}"
    return Cell("vit" if lean > 0 else "cnn", abs(lean) / max(reach, 1e-9), title)
