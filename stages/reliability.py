"""Reliability: how often a network is right where it says that it is so sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

from stages.svg import add, as_markup, svg_root
from stages.wording import percent, plural

_SIDE, _LEFT, _TOP, _BOTTOM = 170, 38, 8, 34  # of the square, and the room around it
Rows = Sequence[Mapping[str, Any]]


def reliability_chart(rows: Rows, role: str, title: str) -> Markup | None:
    """A network's accuracy by its confidence, before its temperature and after it.

    Args:
        rows: of `evaluate/reliability.csv`, of one head.
        role: whose.
        title: the network's name, for people.

    Returns:
        None where nothing was answered.
    """
    bins = {
        calibrated: [
            row
            for row in rows
            if row["role"] == role and row["calibrated"] == calibrated and row["videos"]
        ]
        for calibrated in (False, True)
    }
    if not bins[False]:
        return None
    label = f"{title}: accuracy by confidence, " + "; ".join(map(_told, bins[False]))
    svg = svg_root(label, _LEFT + _SIDE + 22, _TOP + _SIDE + _BOTTOM, "square")
    for share in (0.0, 0.5, 1.0):
        add(svg, "line", cls="rule", x1=_LEFT, x2=_LEFT + _SIDE, y1=_down(share), y2=_down(share))
        add(svg, "text", percent(share, 0), cls="tick end", x=_LEFT - 5, y=_down(share) + 4)
        below = _TOP + _SIDE + 15
        add(svg, "text", percent(share, 0), cls="tick middle", x=_across(share), y=below)
    add(svg, "text", "confidence", cls="tick middle", x=_across(0.5), y=below + 15)
    for row in bins[False]:
        _add_bar(svg, row, role)
    add(svg, "line", cls="mark", x1=_across(0), y1=_down(0), x2=_across(1), y2=_down(1))
    for row in bins[True]:
        x, y = _across(row["confidence"]), _down(row["accuracy"])
        add(add(svg, "circle", cls="after", r=3.5, cx=x, cy=y), "title", _told(row))
    return as_markup(svg)


def _across(share: float) -> float:
    return _LEFT + share * _SIDE


def _down(share: float) -> float:
    return _TOP + (1 - share) * _SIDE


def _add_bar(svg: ElementTree.Element, row: Mapping[str, Any], role: str) -> None:
    left, top = _across(row["bin_low"]) + 0.5, _down(row["accuracy"])
    box = add(svg, "rect", cls=role, x=left, y=top)
    box.set("width", f"{_across(row['bin_high']) - left - 0.5:.2f}")
    box.set("height", f"{_down(0) - top:.2f}")
    add(box, "title", _told(row))


def _told(row: Mapping[str, Any]) -> str:
    when = "after" if row["calibrated"] else "before"
    return (
        f"{when} temperature, confidence {percent(row['confidence'])}: right in "
        f"{percent(row['accuracy'])} of {plural(row['videos'], 'video')}"
    )
