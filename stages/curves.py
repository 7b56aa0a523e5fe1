"""The training logs as panels: every loss term, accuracy, and means of DATW's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.config_training import Weights
from stages.charts import Line, line_chart
from stages.wording import figure, percent, short_percent

Log = Mapping[str, Sequence[float]]  # column → a value per epoch

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
