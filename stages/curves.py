"""The training logs as panels: every loss term, accuracy, and how DATW's weights move."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.config_training import Weights
from stages.charts import Cell, Line, grid_chart, line_chart
from stages.wording import figure, percent, short_percent

Log = Mapping[str, Sequence[float]]  # column → a value per epoch
_MOST_ROWS, _MOST_COLUMNS = 30, 40  # of the weights by class

_TERMS = {
    "kd": ("KD with DATW", "KL divergence to the weighted teachers"),
    "sdd": ("SDD", "error of the predicted residual; 1 − SDD is the branch’s R²"),
    "rkd": ("RKD", "distances and angles between clips, against the ViT’s"),
}


@dataclass(frozen=True)
class Panel:
    """One small chart with its heading.

    Attributes:
        title: the heading.
        note: what the numbers are, and where they went.
        chart: None where there is nothing to draw; the note says why.
    """

    title: str
    note: str
    chart: Markup | None = None


def epochs_of(log: Log) -> list[float]:
    """The epochs, counted from 1."""
    return [epoch + 1 for epoch in log["epoch"]]


def loss_panels(logs: Mapping[str, Log], weights: Weights) -> list[Panel]:
    """Total, cross-entropy, every term of the method, and accuracy for each head."""
    student = logs["student"]
    terms = " + ".join(
        [
            "CE",
            *(f"{getattr(weights, term):g}·{term.upper()}" for term in _TERMS if term in student),
        ]
    )
    panels = [
        _panel("Total loss of the student", terms, {"student": student}, "loss"),
        _panel("Cross-entropy", "the baseline’s whole loss", logs, "ce"),
    ]
    for term, (title, note) in _TERMS.items():
        if term in student:
            panels.append(_panel(title, note, {"student": student}, term))
        else:
            panels.append(Panel(title, f"This term was off (λ_{term} = 0): it was not computed."))
    for column in student:
        if column.startswith("accuracy/"):
            head = column.removeprefix("accuracy/")
            title = f"Accuracy while training, {head}"
            panels.append(_panel(title, "top-1 on the training clips", logs, column, shares=True))
    return panels


def datw_panels(student: Log) -> list[Panel]:
    """Mean weight of the ViT, and the share of clips where it leads; empty where DATW was off."""
    told = {
        "vit_weight": ("Mean weight of the ViT", "the CNN has the rest; the rule marks equal"),
        "vit_leads": ("Clips where the ViT leads", "share whose ViT weight is above one half"),
    }
    return [
        _panel(title, note, {"student": student}, column, shares=True, mark=0.5, kind="vit")
        for column, (title, note) in told.items()
        if column in student
    ]


def _panel(
    title: str,
    note: str,
    logs: Mapping[str, Log],
    column: str,
    *,
    shares: bool = False,
    mark: float | None = None,
    kind: str | None = None,
) -> Panel:
    show: Callable[[float], str] = short_percent if shares else figure
    lines, moves = [], []
    for variant in ("baseline", "student"):
        if variant in logs and column in logs[variant]:
            ys = logs[variant][column]
            points = list(zip(epochs_of(logs[variant]), ys, strict=True))
            lines.append(Line(variant, kind or variant, points))
            moves.append(f"{variant} {_rounded(ys[0], shares)} → {_rounded(ys[-1], shares)}")
    movement = "; ".join(reversed(moves))
    if len(lines) == 1:
        movement = movement.partition(" ")[2]
    bounds: dict[str, float] = {"low": 0.0, "high": 1.0} if shares else {"low": 0.0}
    if mark is not None:
        values = [abs(y - mark) for line in lines for _, y in line.points]
        reach = min(0.5, math.ceil(20 * max(values) + 0.2) / 20)
        bounds = {"low": mark - reach, "high": mark + reach}
    label = f"{title} by epoch: {movement}"
    chart = line_chart(label, lines, x_name="epoch", mark=mark, show=show, **bounds)
    return Panel(title, f"{note}; {movement}", chart)


def _rounded(value: float, shares: bool) -> str:
    return percent(value) if shares else figure(value)


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
    cells = [[_weight_cell(name, e, table[name].get(e), reach) for e in columns] for name in shown]
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


def _weight_cell(name: str, epoch: int, weight: float | None, reach: float) -> Cell | None:
    if weight is None:
        return None
    lean = weight - 0.5
    title = f"{name}, epoch {epoch + 1}: ViT {percent(weight)}, CNN {percent(1 - weight)}"
    return Cell("vit" if lean > 0 else "cnn", abs(lean) / max(reach, 1e-9), title)
